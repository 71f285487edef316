"""What the tables of runs have in common: their arguments, what is kept of a run, how they end."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from workload import positive

from kd_d2.engine import user_errors
from kd_d2.experiments.jobs import Job


def add_run_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """How runs are run, and where they and their results are kept.

    Args:
        output: folder of the runs by default.
    """
    add = parser.add_argument
    add("--workers", type=positive, default=2, help="runs side by side")
    add("--threads", type=positive, default=1, help="CPU threads of each run")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--output", type=Path, default=Path(output))
    add("--results", type=Path, default=Path("benchmarks/results"))
    add("--resume", action="store_true", help="continue unfinished runs")
    add("--table-only", action="store_true", help="print what there is")


def how_it_ran(args: argparse.Namespace, job: Job, machine: dict) -> dict:
    """The entries of a result that say by what command and on what it was made."""
    return {
        "command": shlex.join(["python", *job.command(Path("train_net.py"))[1:]]),
        "workers": args.workers,
        "threads": args.threads,
        "machine": machine,
        "fingerprint": job.fingerprint(),
    }


def attempt(run: Callable[[], None]) -> int:
    """Runs what may take hours; the exit code, after a sentence if it did not come to its end."""
    try:
        with user_errors():
            run()
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on with what is not finished.")
        return 130
    except RuntimeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0
