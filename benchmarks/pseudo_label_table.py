"""AP with few labels on the built-in data: with pseudo labels, with labels alone, and with both.

    python benchmarks/pseudo_label_table.py --seeds 1 2 3                  # hours on two CPU cores
    python benchmarks/pseudo_label_table.py --seeds 1 2 3 --parts labels --percents 10
    python benchmarks/pseudo_label_table.py --iterations 2400 --teacher-iterations 5000
    python benchmarks/pseudo_label_table.py --table-only --curves few_labels.png

Each run is a run of train_net.py with configs/quickstart/pseudo_label_gfl.yaml (or another of
--config); seed s has labels of fold s - 1. Finished runs are kept as one JSON file each in
benchmarks/results, and are not repeated. Paths are relative to the checkout.
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from kept_runs import add_run_arguments, attempt, how_it_ran
from pseudo_label_plan import PARTS, ROOT, Plan, Run
from pseudo_label_report import draw_few_labels, provenance, read_results, tables
from workload import positive

from kd_d2.data.subsets import PERCENTAGES, SEEDS
from kd_d2.experiments.jobs import Job, run_jobs
from kd_d2.experiments.machine import describe_machine
from kd_d2.experiments.progress import Progress
from kd_d2.experiments.schedule import make_data


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart/pseudo_label_gfl.yaml")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--percents", nargs="+", type=int, choices=PERCENTAGES, default=[5, 10, 20, 100]
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, choices=[fold + 1 for fold in SEEDS], default=[1, 2, 3]
    )
    parser.add_argument("--iterations", type=positive, default=1200, help="of phase B")
    parser.add_argument(
        "--teacher-iterations", type=positive, help="default: in proportion to the student's"
    )
    add_run_arguments(parser, "output/benchmarks/pseudo_labels")
    parser.add_argument("--curves", type=Path, metavar="PNG", help="draw AP over labels, too")
    return parser.parse_args(argv)


def result_path(args: argparse.Namespace, run: Run) -> Path:
    """Where the result of a run is kept."""
    what = f"{run.part}_{run.row}_{run.percent}p" if run.percent else f"{run.part}_{run.row}"
    return args.results / f"pseudo_{what}_{args.iterations}it_seed{run.seed}.json"


def has_result(args: argparse.Namespace, run: Run) -> bool:
    """Whether nobody needs it, or the same run has left its result."""
    path = result_path(args, run)
    if not run.row:
        return True
    return path.exists() and json.loads(path.read_text())["fingerprint"] == run.job.fingerprint()


def write_result(args: argparse.Namespace, run: Run, machine: dict) -> None:
    """Keeps the numbers of a finished run."""
    if not run.row:
        return
    metrics = run.job.metrics
    result = {
        "part": run.part,
        "row": run.row,
        "percent": run.percent,
        "seed": run.seed,
        "iterations": metrics.iterations_done(),
        "scores": metrics.scores(run.task),
        **how_it_ran(args, run.job, machine),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    result_path(args, run).write_text(json.dumps(result, indent=1) + "\n")


def to_do(runs: list[Run], args: argparse.Namespace) -> list[list[Run]]:
    """What has no result yet, and what it needs; lists that can be run one after the other."""
    waiting = [run for run in runs if not has_result(args, run)]
    needed: dict[int, Run] = {}
    while waiting:
        run = waiting.pop()
        needed[id(run)] = run
        waiting += [x for x in run.needs if id(x) not in needed]
    ordered = [run for run in runs if id(run) in needed]
    depths = sorted({run.depth for run in ordered})
    return [[run for run in ordered if run.depth == depth] for depth in depths]


def run_all(args: argparse.Namespace) -> None:
    """Runs what has no result yet."""
    make_data(args.config)
    runs = Plan(args).runs
    waves = to_do(runs, args)
    print(f"{len(runs)} runs, {sum(map(len, waves))} of them to do.", flush=True)
    machine = describe_machine(args.device)
    for wave in waves:
        by_job: dict[int, list[Run]] = {}
        for run in wave:
            by_job.setdefault(id(run.job), []).append(run)
        jobs = [mine[0].job for mine in by_job.values()]

        def keep(job: Job, by_job=by_job) -> None:
            for run in by_job[id(job)]:
                write_result(args, run, machine)

        run_jobs(
            jobs,
            ROOT / "train_net.py",
            args.workers,
            args.threads,
            args.resume,
            on_tick=Progress(args.workers, every=60),
            on_end=keep,
        )
        for job in jobs:
            if job.status == "kept":  # finished in an earlier call
                keep(job)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    os.chdir(ROOT)
    if not args.table_only and (code := attempt(lambda: run_all(args))):
        return code
    results = read_results(args.results, args.iterations)
    if not results:
        print(
            f"Error: there are no results in {args.results} of {args.iterations} iterations: make "
            "some (without --table-only), or give their folder (--results) or length "
            "(--iterations).",
            file=sys.stderr,
        )
        return 1
    if args.curves:
        draw_few_labels(args.curves, results)
    command = shlex.join(["python", "benchmarks/pseudo_label_table.py", *(argv or sys.argv[1:])])
    print(f"\n{tables(results)}\n\n{provenance(results)}\n\n`{command}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
