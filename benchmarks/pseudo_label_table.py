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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pseudo_label_report import draw_few_labels, provenance, read_results, tables
from workload import positive

from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import load_config, user_errors
from kd_d2.experiments.jobs import Job, run_jobs
from kd_d2.experiments.machine import describe_machine
from kd_d2.experiments.progress import Progress
from kd_d2.experiments.schedule import make_data, schedule_overrides
from kd_d2.projects.pseudo_label.phases import phase_c_length
from kd_d2.projects.pseudo_label.recipe import teacher_sources
from kd_d2.projects.pseudo_label.relabeled import View, write_view

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("labels", "same_subset", "two_teachers", "domain")
SPLIT = 3  # classes of the first of two teachers
FEW = 10  # percent of labels, where there is one number only
FEW_OF_TARGET = 5
NUM_TRAIN = 2000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart/pseudo_label_gfl.yaml")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--percents", nargs="+", type=positive, default=[5, 10, 20, 100])
    parser.add_argument("--seeds", nargs="+", type=positive, default=[1, 2, 3])
    parser.add_argument("--iterations", type=positive, default=1200, help="of phase B")
    parser.add_argument(
        "--teacher-iterations", type=positive, help="default: in proportion to the student's"
    )
    parser.add_argument("--workers", type=positive, default=2, help="runs side by side")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of each run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks/pseudo_labels"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--resume", action="store_true", help="continue unfinished runs")
    parser.add_argument("--table-only", action="store_true", help="print what there is")
    parser.add_argument("--curves", type=Path, metavar="PNG", help="draw AP over labels, too")
    return parser.parse_args(argv)


@dataclass(eq=False)
class Run:
    """One run of train_net.py.

    Attributes:
        part: of ``PARTS``.
        row: what it is a line of in its table; "" of runs that others need, and nobody reads.
        percent: of images that have labels; 0: none.
        needs: runs that must be finished before.
        task: prefix of the names of its scores.
    """

    part: str
    row: str
    percent: int
    seed: int
    job: Job
    needs: list["Run"] = field(default_factory=list)
    task: str = "bbox"

    @property
    def depth(self) -> int:
        return 1 + max((run.depth for run in self.needs), default=-1)

    @property
    def weights(self) -> Path:
        return (self.job.output / self.job.part / "model_final.pth").resolve()


class Plan:
    """All runs that a command line asks for."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.runs = args, []
        self.teacher_config = teacher_sources(load_config(args.config))[0].config_file
        for part in args.parts:
            getattr(self, f"_add_{part}")()

    # ---- single runs

    @cached_property
    def _scale(self) -> float:
        """How much longer the schedule is than that of the config."""
        return self.args.iterations / load_config(self.args.config).SOLVER.MAX_ITER

    def _run(
        self,
        part: str,
        row: str,
        percent: int,
        seed: int,
        *,
        config: str = "",
        iterations: int | None = None,
        needs: list[Run] = (),
        folder: str = "",
        task: str = "bbox",
        name: str = "",
        **overrides,
    ) -> Run:
        args, config = self.args, config or self.args.config
        values, length = schedule_overrides(config, iterations or args.iterations)
        # as long a part of phase B as in the config
        epochs = load_config(self.args.config).PSEUDO_LABEL.PHASE_C.EPOCHS * self._scale
        values["PSEUDO_LABEL.PHASE_C.EPOCHS"] = epochs
        values |= {"SEED": seed, "MODEL.DEVICE": args.device, "TEST.EVAL_PERIOD": length}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        name = name or f"{part}_{row}_{percent}p_seed{seed}"
        job = Job(
            name=name,
            config=config,
            output=args.output / f"{name}_{args.iterations}it",
            iterations=length,
            overrides={key: str(value) for key, value in values.items()},
            num_gpus=int(args.device == "cuda"),
            part=folder,
        )
        self.runs.append(Run(part, row, percent, seed, job, list(needs), task))
        return self.runs[-1]

    def _teacher(self, part: str, row: str, seed: int = 1, name: str = "", **overrides) -> Run:
        """A teacher's training; its schedule keeps its proportion to the student's."""
        own, student = (load_config(x).SOLVER.MAX_ITER for x in (self._zoo_file, self.args.config))
        length = self.args.teacher_iterations or round(self.args.iterations * own / student)
        config, name = self._zoo_file, name or f"{part}_teacher_seed{seed}"
        return self._run(
            part, row, 0, seed, config=config, iterations=length, name=name, **overrides
        )

    @cached_property
    def _zoo_file(self) -> str:
        from kd_d2.model_zoo import resolve_config_file

        return os.path.relpath(resolve_config_file(self.teacher_config), ROOT)

    @cached_property
    def _source_teacher(self) -> Run:
        """Has seen all labels of the training images, and is tried on both kinds of images."""
        tests = ("shapes_val", "shapes_shifted_val")
        return self._teacher(
            "labels", "teacher", name="teacher", task="shapes_val/bbox", DATASETS__TEST=tests
        )

    def _labels(self, part: str, seed: int, teachers: list[Run], **overrides) -> Run:
        """Phase A, which makes labels for others. ``overrides`` say of which images."""
        names = [f"teacher{number}" for number in range(1, len(teachers) + 1)]
        entries = [
            f"{name}={(run.job.output / 'config.yaml').resolve()},{run.weights}"
            for name, run in zip(names, teachers, strict=True)
        ]
        return self._run(
            part,
            "",
            0,
            seed,
            iterations=1,
            needs=teachers,
            name=f"{part}_phase_a_seed{seed}",
            PSEUDO_LABEL__TEACHERS=entries,
            PSEUDO_LABEL__PHASES=["A"],
            **overrides,
        )

    def _student(self, row: str, percent: int, seed: int, labels: Run, phases: str, **more) -> Run:
        """Phase B or a baseline, with the settings of the run that has made the labels."""
        settings = {
            key.replace(".", "__"): value
            for key, value in labels.job.overrides.items()
            if key.startswith(("PSEUDO_LABEL.", "DATASETS."))
        }
        settings |= {
            "PSEUDO_LABEL__LABELS_DIR": (labels.job.output / "labels").resolve(),
            "PSEUDO_LABEL__PHASES": list(phases),
        }
        needs = [labels, *more.pop("needs", [])]
        return self._run(labels.part, row, percent, seed, needs=needs, **{**settings, **more})

    def _c(self, row: str, percent: int, seed: int, b: Run, labels: Run, labeled, **more) -> Run:
        """Phase C on some labels."""
        return self._student(
            row,
            percent,
            seed,
            labels,
            "C",
            needs=[b],
            folder="phase_c",
            PSEUDO_LABEL__PHASE_C__WEIGHTS=b.weights,
            PSEUDO_LABEL__LABELED=list(labeled),
            **more,
        )

    # ---- parts

    def _few(self, seed: int, percent: int) -> dict:
        """Images with labels, and others."""
        few = f"shapes_train_{percent}p_s{seed - 1}"
        rest = [f"{few}_rest"] if percent < 100 else []
        return {"PSEUDO_LABEL__LABELED": [few], "PSEUDO_LABEL__UNLABELED": [*rest, _UNLABELED]}

    def _add_labels(self) -> None:
        everything = self._labels("labels", 1, [self._source_teacher], **self._few(1, FEW))
        fewer = self._labels(
            "train_only", 1, [self._source_teacher],
            PSEUDO_LABEL__LABELED=[], PSEUDO_LABEL__UNLABELED=["shapes_train"],
        )  # fmt: skip
        fewer.part = "labels"
        for seed in self.args.seeds:
            b = self._student("b", 0, seed, everything, "B", folder="phase_b")
            less = self._student("b_train_only", 0, seed, fewer, "B", folder="phase_b")
            for percent in self.args.percents:
                images = self._few(seed, percent)
                self._c("b_c", percent, seed, b, everything, images["PSEUDO_LABEL__LABELED"])
                for kind in ("labels", "joint") if percent < 100 else ("labels",):
                    self._student(
                        kind, percent, seed, everything, "ABC",
                        folder=f"baseline_{kind}", PSEUDO_LABEL__BASELINE=kind,
                        **{**images, "PSEUDO_LABEL__PHASES": ["B", "C"]},
                    )  # fmt: skip
                if percent == FEW:
                    few = images["PSEUDO_LABEL__LABELED"]
                    self._c("b_c_train_only", percent, seed, less, fewer, few)
            self._all_labels(seed)

    def _all_labels(self, seed: int) -> None:
        """All labels, for as long as phases B and C are with the most of the few labels."""
        few = max((x for x in self.args.percents if x < 100), default=FEW)
        cfg = load_config(self.args.config)
        cfg.PSEUDO_LABEL.PHASE_C.EPOCHS *= self._scale
        length = self.args.iterations + phase_c_length(cfg, NUM_TRAIN * few // 100)
        self._run("labels", "all_labels", 100, seed, config=self._plain, iterations=length)

    @cached_property
    def _plain(self) -> str:
        """The student's own config."""
        return f"configs/quickstart/plain_{Path(self.args.config).stem.split('_')[-1]}.yaml"

    def _add_same_subset(self) -> None:
        for seed in self.args.seeds:
            images = self._few(seed, FEW)
            few = images["PSEUDO_LABEL__LABELED"]
            teacher = self._teacher("same_subset", "teacher", seed, DATASETS__TRAIN=tuple(few))
            labels = self._labels("same_subset", seed, [teacher], **images)
            b = self._student("b", 0, seed, labels, "B", folder="phase_b")
            self._c("b_c", FEW, seed, b, labels, few)

    def _add_two_teachers(self) -> None:
        part, halves = "two_teachers", (CLASSES[:SPLIT], CLASSES[SPLIT:])
        teachers = []
        for number, own in enumerate(halves, 1):
            teachers.append(
                self._teacher(
                    part,
                    "",
                    name=f"{part}_teacher{number}",
                    DATASETS__TRAIN=(self._view(["shapes_train"], own),),
                    DATASETS__TEST=(),
                    MODEL__GFL__NUM_CLASSES=len(own),
                )  # fmt: skip
            )
        labels = self._labels(part, 1, teachers, **self._few(1, FEW))
        for seed in self.args.seeds:
            few = self._few(seed, FEW)["PSEUDO_LABEL__LABELED"]
            b = self._student("b", 0, seed, labels, "B", folder="phase_b")
            self._c("b_c", FEW, seed, b, labels, few)
            for missing in ("pseudo", "mask", "background"):
                self._c(
                    f"b_c_{missing}", FEW, seed, b, labels, [self._view(few, halves[0])],
                    PSEUDO_LABEL__PHASE_C__MISSING=missing,
                )  # fmt: skip

    def _view(self, datasets: list[str], classes: tuple[str, ...]) -> str:
        """Labels of some classes only."""
        path = (self.args.output / f"{datasets[0]}_{'_'.join(classes)}.json").resolve()
        rest = [name for name in CLASSES if name not in classes]
        view = View(datasets=datasets, classes=list(classes), missing="background", drop=rest)
        if not self.args.table_only:
            write_view(path, view)
        return f"relabeled:{path}"

    def _add_domain(self) -> None:
        target = ("shapes_shifted_val",)
        images = {
            "PSEUDO_LABEL__LABELED": [],
            "PSEUDO_LABEL__UNLABELED": ["shapes_shifted_train", "shapes_shifted_unlabeled"],
            "PSEUDO_LABEL__PHASE_B_IMAGES": "unlabeled",
            "PSEUDO_LABEL__MERGE__THRESHOLDS": "per_class_count",
            "PSEUDO_LABEL__MERGE__THRESHOLD_LABELS": "shapes_train",
            "DATASETS__TEST": target,
        }
        labels = self._labels("domain", 1, [self._source_teacher], **images)
        teacher = self._source_teacher
        task = f"{target[0]}/bbox"
        self.runs.append(Run("domain", "teacher", 0, 1, teacher.job, teacher.needs, task))
        for seed in self.args.seeds:
            for row, train in (("source", "shapes_train"), ("oracle", "shapes_shifted_train")):
                self._run(
                    "domain", row, 100, seed,
                    config=self._plain, DATASETS__TRAIN=(train,), DATASETS__TEST=target,
                )  # fmt: skip
            few = [f"shapes_shifted_train_{FEW_OF_TARGET}p_s{seed - 1}"]
            b = self._student("b", 0, seed, labels, "B", folder="phase_b")
            self._c("b_c", FEW_OF_TARGET, seed, b, labels, few)
            self._student(
                "labels", FEW_OF_TARGET, seed, labels, "BC", folder="baseline_labels",
                PSEUDO_LABEL__BASELINE="labels", PSEUDO_LABEL__LABELED=few,
            )  # fmt: skip


_UNLABELED = "shapes_unlabeled"


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
        "command": shlex.join(["python", *run.job.command(Path("train_net.py"))[1:]]),
        "workers": args.workers,
        "threads": args.threads,
        "machine": machine,
        "fingerprint": run.job.fingerprint(),
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
    if not args.table_only:
        try:
            with user_errors():
                make_data(args.config)
                run_all(args)
        except KeyboardInterrupt:
            print("\nStopped; the same command goes on with what is not finished.")
            return 130
        except RuntimeError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
    results = read_results(args.results)
    if not results:
        print(
            f"Error: there are no results in {args.results}: make some (without --table-only), or "
            "give their folder (--results).",
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
