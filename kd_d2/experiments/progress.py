"""How far several jobs are, for a terminal or a log file."""

import sys
import time
from typing import TextIO

from kd_d2.experiments.jobs import Job

_WIDTH = 24


def remaining_seconds(jobs: list[Job], workers: int) -> float | None:
    """When the last job will be done, if they go on as they have; None as long as no one knows.

    Jobs that have not started are assumed to need ``cost`` times as long as the measured ones, and
    take the first worker that becomes free, in their order.
    """
    measured = [job for job in jobs if job.seconds_per_iteration]
    if not measured:
        return None if any(job.status in ("waiting", "running") for job in jobs) else 0.0
    unit = sum(job.seconds_per_iteration / job.cost for job in measured) / len(measured)

    def left(job: Job) -> float:
        return (job.seconds_per_iteration or unit * job.cost) * (job.iterations - job.done)

    free_at = [left(job) for job in jobs if job.status == "running"]
    free_at += [0.0] * (workers - len(free_at))
    for job in jobs:
        if job.status == "waiting":
            first = free_at.index(min(free_at))
            free_at[first] += left(job)
    return max(free_at)


def clock_text(seconds: float) -> str:
    """
    >>> clock_text(7), clock_text(754)
    ('0:07', '12:34')
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def describe_remaining(seconds: float | None) -> str:
    """
    >>> describe_remaining(None), describe_remaining(40), describe_remaining(340)
    ('measuring the remaining time', 'less than a minute left', 'about 6 min left')
    """
    if seconds is None:
        return "measuring the remaining time"
    return "less than a minute left" if seconds < 60 else f"about {seconds / 60:.0f} min left"


def describe_job(job: Job) -> str:
    """A word on one job: waiting, evaluating, or how many iterations of how many."""
    ap = f", AP {job.ap:.1f}" if job.ap is not None and job.ap == job.ap else ""
    if job.status == "running" and job.done < job.iterations:
        return f"{job.done}/{job.iterations}{ap}" if job.done else "starting"
    last = {"running": "last evaluation", "finished": "done", "kept": "done before"}
    return f"{last.get(job.status, job.status)}{ap}"


class Progress:
    """Shows the jobs: bars that move on a terminal, else a line now and then."""

    def __init__(self, workers: int, stream: TextIO = sys.stdout, every: float = 20.0):
        """
        Args:
            every: seconds between two lines where ``stream`` is not a terminal.
        """
        self.workers, self.stream, self.every = workers, stream, every
        self.start = time.monotonic()
        self._shown = 0
        self._last = -every

    def __call__(self, jobs: list[Job]) -> None:
        elapsed = time.monotonic() - self.start
        left = describe_remaining(remaining_seconds(jobs, self.workers))
        if self.stream.isatty():
            self._redraw([*map(self._bar, jobs), f"  {clock_text(elapsed)} gone, {left}"])
        elif elapsed - self._last >= self.every:
            self._last = elapsed
            states = "; ".join(f"{job.name}: {describe_job(job)}" for job in jobs)
            print(f"[{clock_text(elapsed):>5}] {states} - {left}", file=self.stream, flush=True)

    def _bar(self, job: Job) -> str:
        filled = round(_WIDTH * job.done / max(job.iterations, 1))
        bar = "#" * filled + "." * (_WIDTH - filled)
        return f"  {job.name:<16} [{bar}] {describe_job(job)}"

    def _redraw(self, lines: list[str]) -> None:
        up = f"\x1b[{self._shown}A" if self._shown else ""
        self.stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self.stream.flush()
        self._shown = len(lines)
