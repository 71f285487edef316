#!/usr/bin/env python
"""Trains a detector plainly and with LGD on the built-in data set, and reports what came out.

    python tools/demo.py                      # what `make demo` does
    python tools/demo.py --iterations 300     # a shorter schedule
    python tools/demo.py --resume             # after Ctrl-C: go on at the last checkpoint

Three runs of train_net.py: the plain student, LGD, and the control (LGD's teacher branch without
its feature loss). Runs that are already finished are kept; --anew makes them again.
"""

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path

from demo_parts.pictures import draw_pictures
from demo_parts.plan import ROOT, Configs, plan_jobs
from demo_parts.report import text_table, write_report
from demo_parts.results import Results, findings, table

from kd_d2.engine import user_errors
from kd_d2.experiments.jobs import Job, run_jobs
from kd_d2.experiments.machine import describe_machine, machine_sentence
from kd_d2.experiments.progress import Progress, clock_text
from kd_d2.experiments.schedule import make_data


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Configs()
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("--iterations", type=int, help="length of each run (default: the configs')")
    parser.add_argument(
        "--configs",
        nargs=3,
        type=Path,
        metavar=("PLAIN", "LGD", "CONTROL"),
        default=(default.plain, default.lgd, default.control),
        help="configs of the three runs (default: RetinaNet of configs/quickstart)",
    )
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--resume", action="store_true", help="continue unfinished runs")
    parser.add_argument("--anew", action="store_true", help="repeat finished runs, too")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    return parser.parse_args(argv)


def train(jobs: list[Job], args: argparse.Namespace) -> None:
    """Runs what is not finished, with progress on the terminal."""
    if args.anew:
        for job in jobs:
            if job.marker():
                shutil.rmtree(job.output)
    for job in jobs:
        if job.is_finished():
            print(f"  {job.name}: kept from {job.marker()['finished']} (--anew repeats it)")
    progress = Progress(args.workers)
    run_jobs(jobs, ROOT / "train_net.py", args.workers, resume=args.resume, on_tick=progress)


def report(jobs: dict[str, Job], output: Path) -> str:
    """Writes report.md and its pictures; returns what is printed."""
    results = Results(*(jobs[name].metrics for name in ("plain", "lgd", "control")))
    curves = {"plain": results.plain, "control": results.control, "LGD": results.lgd}
    pictures = draw_pictures(output, jobs["plain"], jobs["lgd"], curves)
    commands = [_command_line(jobs[name]) for name in ("plain", "lgd", "control")]
    machine = machine_sentence(describe_machine())
    write_report(output / "report.md", results, pictures, commands, machine)
    words = "\n".join(f"- {sentence}" for sentence in findings(results))
    return f"{text_table(table(results))}\n\n{words}"


def _command_line(job: Job) -> str:
    """As a user would type it in the checkout."""
    command = job.command(Path("train_net.py"))
    command[0] = "python"
    return "OMP_NUM_THREADS=1 " + shlex.join(arg.removeprefix(f"{ROOT}/") for arg in command)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    start = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    with user_errors():
        configs = Configs(*(path.resolve() for path in args.configs))
        jobs = plan_jobs(configs, args.output.resolve(), args.iterations, args.quick)
        make_data(jobs[0].config)
    print(
        f"Plain, LGD and control, {jobs[0].iterations} iterations each, {args.workers} side by "
        "side. Ctrl-C stops all; --resume goes on.",
        flush=True,
    )
    try:
        train(jobs, args)
    except KeyboardInterrupt:
        print("\nStopped. `python tools/demo.py --resume` goes on at the last checkpoints.")
        return 130
    except (RuntimeError, FileExistsError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print("Drawing the pictures ...", flush=True)
    text = report({job.name: job for job in jobs}, args.output)
    print(f"\n{text}\n\nReport with pictures: {args.output / 'report.md'}")
    print(f"Done in {clock_text(time.monotonic() - start)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
