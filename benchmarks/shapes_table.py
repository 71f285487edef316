"""AP on the built-in data over several seeds: plain, control, LGD, heads with a frozen teacher.

    python benchmarks/shapes_table.py --seeds 1 2 3                    # hours on two CPU cores
    python benchmarks/shapes_table.py --seeds 1 2 3 --detectors atss gfl --methods plain pkd pgd
    python benchmarks/shapes_table.py --seeds 1 2 3 --detectors atss --methods pgd pgd@0.1
    python benchmarks/shapes_table.py --seeds 1 2 3 --device cuda --workers 4
    python benchmarks/shapes_table.py --table-only --curves curves.png

Each run is a run of train_net.py with a config of configs/quickstart. Finished runs are kept as one
JSON file each in benchmarks/results, and are not repeated. Paths are relative to the checkout.
A method with a number behind it has its distillation losses times that.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from kept_runs import add_run_arguments, attempt, how_it_ran
from shapes_report import draw_curves, draw_gains, provenance, read_results, summary
from workload import positive

from kd_d2.config.rules import ConfigError
from kd_d2.engine import load_config
from kd_d2.experiments.jobs import Job, run_jobs
from kd_d2.experiments.machine import describe_machine
from kd_d2.experiments.progress import Progress
from kd_d2.experiments.schedule import make_data, schedule_overrides
from kd_d2.model_zoo import resolve_config_file
from kd_d2.projects import check_project_configs

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "plain": "configs/quickstart/plain_{}.yaml",
    "control": "configs/quickstart/lgd_{}_control.yaml",
    "lgd": "configs/quickstart/lgd_{}.yaml",
    "control_mlp": "configs/quickstart/lgd_{}_mlp_control.yaml",
    "lgd_mlp": "configs/quickstart/lgd_{}_mlp.yaml",
}
# Methods with a frozen teacher are configs with these heads
HEADS = {
    "pkd": "PKD",
    "cwd": "CWD",
    "fgd": "FGD",
    "mgd": "MGD",
    "fgfi": "FGFI",
    "pgd": "PGD",
    "cross_kd": "CrossKD",
    "soft_label": "SoftLabel",
    "dkd": "DKD",
    "inherit": "PKD",
    "pgd_inherit": "PGD",
    "roifi": "SGFI",
    "sgfi": "SGFI",
    "ckd": "CKD",
    "sgfi_ckd": "SGFI CKD",
    "gdetkd": "SGFI CKD RoIClassKD RoIBoxKD",
    "kd": "FocalSoftLabel",
    "lad": "",
    "solad": "FocalSoftLabel",
}
CONFIGS |= dict.fromkeys(HEADS, "configs/quickstart/pkd_{}.yaml")
_OF_REGIONS = ("roifi", "sgfi", "ckd", "sgfi_ckd", "gdetkd")
CONFIGS |= dict.fromkeys(_OF_REGIONS, "configs/quickstart/gdetkd_{}.yaml")
CONFIGS |= {x: f"configs/quickstart/{x}_{{}}.yaml" for x in ("kd", "lad", "solad")}
_CO_LEARNING = ("colad", "colad_fisher", "colad_self")
CONFIGS |= dict.fromkeys(_CO_LEARNING, "configs/quickstart/colad_{}.yaml")
# What else they set: the student begins with its teacher's neck and head, as in PGD's paper
_INHERITING = {"MODEL.KD.INHERIT": "['neck', 'head']"}
_BOTH_EVALUATED = {"MODEL.KD.EVAL_TEACHER": "True"}
_SETTINGS = {
    "inherit": _INHERITING | {"MODEL.KD.HEAD_WEIGHTS": "[0.0]"},
    "pgd_inherit": _INHERITING,
    "roifi": {"MODEL.KD.SGFI.MATCHING": "assigned"},
    "gdetkd": {"MODEL.KD.INHERIT": "['box_head']"},
    "colad": _BOTH_EVALUATED,
    "colad_fisher": _BOTH_EVALUATED | {"MODEL.KD.COLAD.SWITCH": "fisher"},
    "colad_self": _BOTH_EVALUATED | {"MODEL.KD.TEACHER.CONFIG_FILE": "''"},
}
# Steps relative to a plain one, until they are measured.
_COSTS = dict.fromkeys(CONFIGS, 1.6) | {"plain": 1.0, "pkd": 1.4, "teacher": 2.0}
# What is run without --methods
_USUAL = ["plain", "control", "lgd", "control_mlp", "lgd_mlp", "pkd"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--detectors", nargs="+", default=["retinanet", "fcos", "faster_rcnn", "mask_rcnn"]
    )
    parser.add_argument("--methods", nargs="+", type=known_method, default=_USUAL)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--iterations", type=positive, help="of each student (default: the configs')"
    )
    parser.add_argument(
        "--evaluations", type=positive, default=10, help="of each student: the points of its curve"
    )
    add_run_arguments(parser, "output/benchmarks/shapes")
    parser.add_argument("--anew", action="store_true", help="repeat runs that have a result")
    parser.add_argument("--curves", type=Path, metavar="PNG", help="draw AP over iterations, too")
    parser.add_argument("--gains", type=Path, metavar="PNG", help="draw AP against plain, too")
    return parser.parse_args(argv)


def known_method(text: str) -> str:
    """A key of CONFIGS; if it has a frozen teacher, perhaps with a factor of its losses.

    >>> known_method("pkd@0.1")
    'pkd@0.1'
    """
    name, at, factor = text.partition("@")
    is_number = factor.replace(".", "", 1).isdecimal()
    if name not in CONFIGS or (at and not (is_number and name in HEADS)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(CONFIGS)}; of these {', '.join(HEADS)} may have a "
            "factor, e.g. pkd@0.1"
        )
    return text


@dataclass
class Run:
    """One cell of the comparison. ``method``: see :func:`known_method`, or "teacher"."""

    detector: str
    method: str
    seed: int
    job: Job
    teacher: "Run | None" = None


def make_run(
    args: argparse.Namespace,
    detector: str,
    method: str,
    seed: int,
    config: str,
    iterations: int | None,
    teacher: Run | None = None,
) -> Run:
    """A run with its seed, on the device of the command line."""
    overrides, length = schedule_overrides(config, iterations)
    overrides |= {"SEED": str(seed), "MODEL.DEVICE": args.device}
    evaluations = 10 if method == "teacher" else args.evaluations
    overrides["TEST.EVAL_PERIOD"] = str(max(1, length // evaluations))
    name, _, factor = method.partition("@")
    if name in HEADS:
        overrides["MODEL.KD.HEADS"] = repr(HEADS[name].split())
    overrides |= _SETTINGS.get(name, {})
    if factor:
        overrides["MODEL.KD.HEAD_WEIGHTS"] = repr([float(factor)] * len(HEADS[name].split()))
    if teacher is not None:
        overrides["MODEL.KD.TEACHER.WEIGHTS"] = str(teacher.job.output / "model_final.pth")
    job = Job(
        name=f"{detector} {method} {seed}",
        config=config,
        output=args.output / f"{detector}_{method}_{length}it_seed{seed}",
        iterations=length,
        overrides=overrides,
        cost=_COSTS[name],
        num_gpus=int(args.device == "cuda"),
    )
    return Run(detector, method, seed, job, teacher)


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs in the order of the command line; frozen teachers hang on those that need them."""
    runs = []
    for detector in args.detectors:
        for method in args.methods:
            name = method.partition("@")[0]
            config = CONFIGS[name].format(detector)
            if not Path(config).is_file():
                print(f"Left out: there is no {config}.", file=sys.stderr)
                continue
            if refusal := refused(config, name):
                print(f"Left out: {detector} {method}. {refusal}", file=sys.stderr)
                continue
            teacher = make_teacher(args, config) if name in HEADS else None
            runs += [
                make_run(args, detector, method, seed, config, args.iterations, teacher)
                for seed in args.seeds
            ]
    return runs


def refused(config: str, method: str) -> str:
    """Why a head does not serve a detector; "" if it does, as far as a config tells."""
    if method not in HEADS:
        return ""
    cfg = load_config(config, ["MODEL.KD.HEADS", repr(HEADS[method].split())])
    try:
        check_project_configs(cfg)
    except ConfigError as error:
        return str(error)
    return ""


def make_teacher(args: argparse.Namespace, config: str) -> Run:
    """The frozen teacher's own training, one for all seeds and all students.

    Its schedule keeps its proportion to the student's.
    """
    cfg = load_config(config)
    teacher_config = os.path.relpath(resolve_config_file(cfg.MODEL.KD.TEACHER.CONFIG_FILE), ROOT)
    iterations = None
    if args.iterations is not None:
        length = load_config(teacher_config).SOLVER.MAX_ITER
        iterations = max(1, round(args.iterations * length / cfg.SOLVER.MAX_ITER))
    return make_run(args, Path(teacher_config).stem, "teacher", 1, teacher_config, iterations)


def result_path(args: argparse.Namespace, run: Run) -> Path:
    """Where the result of a run is kept."""
    return args.results / f"shapes_{run.job.output.name}.json"


def has_result(args: argparse.Namespace, run: Run) -> bool:
    """Whether the same run, with the same finished config, has left its result."""
    path = result_path(args, run)
    if args.anew or not path.exists():
        return False
    return json.loads(path.read_text())["fingerprint"] == run.job.fingerprint()


def write_result(args: argparse.Namespace, run: Run, machine: dict) -> None:
    """Keeps the numbers of a finished run."""
    metrics = run.job.metrics
    result = {
        "detector": run.detector,
        "method": run.method,
        "seed": run.seed,
        "iterations": run.job.iterations,
        "scores": metrics.scores(),
        "mask_scores": metrics.scores("segm"),
        "teacher_scores": metrics.scores("bbox_teacher"),
        "seconds_per_step": metrics.seconds_per_step(),
        "peak_memory": run.job.peak_memory(),
        "detection_share": metrics.first("gradient_share/detection"),
        "curve": list(zip(*metrics.series("bbox/AP"), strict=True)),
        "teacher_curve": list(zip(*metrics.series("bbox_teacher/AP"), strict=True)),
        **how_it_ran(args, run.job, machine),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    result_path(args, run).write_text(json.dumps(result, indent=1) + "\n")


def run_all(args: argparse.Namespace) -> None:
    """Runs what has no result yet: teachers and all who need none, then the others."""
    make_data(CONFIGS["plain"].format(args.detectors[0]))
    runs = plan(args)
    todo = [run for run in runs if not has_result(args, run)]
    print(f"{len(runs) - len(todo)} results are kept, {len(todo)} runs to do.", flush=True)
    # A teacher is run for its weights, so a result of it does not count; finished runs do.
    teachers = {run.teacher.job.output: run.teacher for run in todo if run.teacher is not None}
    independent = [run for run in todo if run.teacher is None]
    dependent = [run for run in todo if run.teacher is not None]
    machine = describe_machine(args.device)
    for group in ([*teachers.values(), *independent], dependent):
        by_output = {run.job.output: run for run in group}
        if args.anew:
            for output, run in by_output.items():
                if run.job.marker():
                    shutil.rmtree(output)
        run_jobs(
            [run.job for run in group],
            ROOT / "train_net.py",
            args.workers,
            args.threads,
            args.resume,
            on_tick=Progress(args.workers, every=60),
            on_end=lambda job, runs=by_output: write_result(args, runs[job.output], machine),
        )
        for run in group:
            # Finished in an earlier call that was stopped before it could write the result.
            if run.job.status == "kept":
                write_result(args, run, machine)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    os.chdir(ROOT)
    if not args.table_only and (code := attempt(lambda: run_all(args))):
        return code
    results = read_results(args.results)
    if not results:
        print(
            f"Error: there are no results in {args.results}: make some (without --table-only), or "
            "give their folder (--results).",
            file=sys.stderr,
        )
        return 1
    if args.curves:
        draw_curves(args.curves, results)
    if args.gains:
        draw_gains(args.gains, results)
    command = shlex.join(["python", "benchmarks/shapes_table.py", *(argv or sys.argv[1:])])
    print(f"\n{summary(results)}\n\n{provenance(results)}\n\n`{command}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
