"""Runs of train_net.py as child processes, a few at a time."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kd_d2.config.student import without_unused_nodes
from kd_d2.experiments.memory import logged_gpu_peak, resident_peak
from kd_d2.experiments.metrics import Metrics

_MARKER = "job.json"
_LOG = "train.log"


@dataclass
class Job:
    """One training run, and how far it is.

    Attributes:
        name: for people.
        config, overrides: what train_net.py is given.
        output: its OUTPUT_DIR; it belongs to the job, and is emptied when the job starts anew.
        iterations: length of the schedule.
        cost: expected time of an iteration relative to the other jobs', until it is measured.
        num_gpus: passed on to train_net.py.
        part: folder below ``output`` of the training that is watched, where there are several.
    """

    name: str
    config: str
    output: Path
    iterations: int
    overrides: dict[str, str] = field(default_factory=dict)
    cost: float = 1.0
    num_gpus: int = 0
    part: str = ""
    status: str = field(default="waiting", init=False)  # waiting, running, finished, kept
    done: int = field(default=0, init=False)
    ap: float | None = field(default=None, init=False)
    resident: float = field(default=0.0, init=False)
    clock_start: tuple[float, int] | None = field(default=None, init=False)
    seconds_per_iteration: float | None = field(default=None, init=False)

    @property
    def metrics(self) -> Metrics:
        """What the run has written so far."""
        return Metrics.read(self.output / self.part / "metrics.json")

    def command(self, train_net: Path, resume: bool = False) -> list[str]:
        """The command line, as a user would type it."""
        command = [sys.executable, str(train_net), "--config-file", self.config]
        command += ["--num-gpus", str(self.num_gpus)] + ["--resume"] * resume
        return [*command, *self._arguments(), "OUTPUT_DIR", str(self.output)]

    def _arguments(self) -> list[str]:
        """The overrides as KEY VALUE KEY VALUE ..."""
        return [text for pair in self.overrides.items() for text in pair]

    def fingerprint(self) -> str:
        """A hash of the finished config: equal for jobs that would do the same.

        Without the nodes of detectors and heads that the job has not, which may change.
        """
        from kd_d2.engine import load_config

        cfg = load_config(self.config, [*self._arguments(), "OUTPUT_DIR", ""])
        text = without_unused_nodes(cfg).dump()
        return hashlib.sha256(f"{text}{self.num_gpus}".encode()).hexdigest()[:16]

    def marker(self) -> dict:
        """What is known of the last time that this job was started; empty if it never was."""
        path = self.output / _MARKER
        return json.loads(path.read_text()) if path.exists() else {}

    def is_finished(self) -> bool:
        """Whether the same job has already run to its end."""
        marker = self.marker()
        return bool(marker.get("finished")) and marker["fingerprint"] == self.fingerprint()

    def peak_memory(self) -> float | None:
        """MiB that the run has needed at most: on a GPU of tensors, else resident memory."""
        if self.num_gpus:
            return logged_gpu_peak(self.output / _LOG)
        return self.marker().get("resident_mib")

    def prepare(self, resume: bool) -> bool:
        """Makes the output folder ready; returns whether there is something to resume.

        Raises:
            FileExistsError: if the folder holds files that no job wrote.
        """
        marker = self.marker()
        resume = resume and marker.get("fingerprint") == self.fingerprint()
        if not resume and self.output.exists() and any(self.output.iterdir()):
            if not marker:
                raise FileExistsError(
                    f"{self.output} holds files that are not of such a run: move them away, or "
                    "choose another output folder."
                )
            shutil.rmtree(self.output)
        self.output.mkdir(parents=True, exist_ok=True)
        return resume

    def write_marker(self, **entries) -> None:
        """Updates the marker."""
        text = json.dumps({**self.marker(), **entries}, indent=1)
        (self.output / _MARKER).write_text(text + "\n")

    def look(self) -> None:
        """Reads from the run's own files how far it is."""
        metrics = self.metrics
        self.done = min(metrics.iterations_done(), self.iterations)
        self.ap = metrics.latest("bbox/AP")
        if self.status != "running" or not self.done:
            return
        if self.clock_start is None:
            self.clock_start = (time.monotonic(), self.done)
        start, first = self.clock_start
        if self.done > first:
            self.seconds_per_iteration = (time.monotonic() - start) / (self.done - first)


def run_jobs(
    jobs: list[Job],
    train_net: Path,
    workers: int = 2,
    threads: int = 1,
    resume: bool = False,
    on_tick: Callable[[list[Job]], None] = lambda jobs: None,
    on_end: Callable[[Job], None] = lambda job: None,
    tick: float = 1.0,
) -> None:
    """Runs the jobs in their order, ``workers`` at a time, and keeps those that are finished.

    Whatever ends this function ends the child processes, too; ``kill`` acts like Ctrl-C.

    Args:
        threads: CPU threads of each run.
        resume: continue unfinished runs at their last checkpoint instead of starting anew.
        on_tick: called about once in ``tick`` seconds.
        on_end: called with each job that has come to its end.

    Raises:
        RuntimeError: if a run fails, with the end of its log.
    """
    for job in jobs:
        if job.is_finished():
            job.status = "kept"
            job.look()
    waiting = [job for job in jobs if job.status == "waiting"]
    with _children() as running:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running.append((job, _start(job, train_net, threads, resume), time.monotonic()))
            for entry in list(running):
                job, process, start = entry
                job.look()
                job.resident = max(job.resident, resident_peak(process.pid) or 0.0)
                if process.poll() is not None:
                    running.remove(entry)
                    _finish(job, process.returncode, time.monotonic() - start)
                    on_end(job)
            on_tick(jobs)
            if running:
                time.sleep(tick)


@contextmanager
def _children() -> Iterator[list]:
    """A list of (job, process, ...), none of which outlives this context."""
    running: list = []
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield running
    finally:
        signal.signal(signal.SIGTERM, terminated)
        # Each has a process group of its own, so that its helpers end with it.
        for sign in (signal.SIGTERM, signal.SIGKILL):
            alive = [process for _, process, _ in running if process.poll() is None]
            for process in alive:
                os.killpg(process.pid, sign)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and any(p.poll() is None for p in alive):
                time.sleep(0.05)


def _start(job: Job, train_net: Path, threads: int, resume: bool) -> subprocess.Popen:
    resume = job.prepare(resume)
    command = job.command(train_net, resume)
    job.write_marker(command=command, fingerprint=job.fingerprint(), finished=None)
    job.status = "running"
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONUNBUFFERED": "1"}
    with open(job.output / _LOG, "a") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _finish(job: Job, returncode: int, seconds: float) -> None:
    if returncode:
        log = job.output / _LOG
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise RuntimeError(
            f"The run {job.name!r} failed with exit code {returncode}; the end of {log}:\n{tail}"
        )
    job.status = "finished"
    job.done = job.iterations
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    seconds += job.marker().get("seconds", 0)
    job.write_marker(finished=now, seconds=round(seconds, 1), resident_mib=round(job.resident))
