"""The runs of ``pseudo_label_table.py``, and what each of them needs."""

import argparse
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kd_d2.config.rules import ConfigError
from kd_d2.data.shapes import SPLITS
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import load_config
from kd_d2.experiments.jobs import Job
from kd_d2.experiments.schedule import schedule_overrides
from kd_d2.projects.pseudo_label.phases import phase_c_length
from kd_d2.projects.pseudo_label.recipe import teacher_sources
from kd_d2.projects.pseudo_label.relabeled import View, write_view

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("labels", "same_subset", "two_teachers", "domain")
SPLIT = 3  # classes of the first of two teachers
FEW = 10  # percent of labels, where there is one number only
FEW_OF_TARGET = 5
MOST = 20  # percent of labels whose phases B and C the student of all labels is as long as


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
    """All runs that a command line asks for.

    Raises:
        ConfigError: the config of --config names no teacher.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.runs = args, []
        self.cfg = load_config(args.config)
        # as long a part of phase B as in the config
        self.cfg.PSEUDO_LABEL.PHASE_C.EPOCHS *= args.iterations / self.cfg.SOLVER.MAX_ITER
        teachers = teacher_sources(self.cfg)
        if not teachers:
            raise ConfigError(
                f"{args.config} has no PSEUDO_LABEL.TEACHERS: give the config of a training that "
                "begins with pseudo labels (--config)."
            )
        self.teacher_config = teachers[0].config_file
        for part in args.parts:
            getattr(self, f"_add_{part}")()

    # ---- single runs

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
        values["PSEUDO_LABEL.PHASE_C.EPOCHS"] = self.cfg.PSEUDO_LABEL.PHASE_C.EPOCHS
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
        """A teacher's training; usually its schedule keeps its proportion to the student's."""
        args, own = self.args, load_config(self._zoo_file).SOLVER.MAX_ITER
        usual = round(args.iterations * own / self.cfg.SOLVER.MAX_ITER)
        length = args.teacher_iterations or usual
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
        run = self._run(labels.part, row, percent, seed, needs=needs, **{**settings, **more})
        run.job.iterations = self._length(percent, run.job.part)
        return run

    def _length(self, percent: int, folder: str = "") -> int:
        """Iterations of the phase that has this folder; of B + C if it is no phase's."""
        b, c = self.args.iterations, phase_c_length(self.cfg, SPLITS["train"] * percent // 100)
        return {"phase_b": b, "phase_c": c}.get(folder, b + c)

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
        return {
            "PSEUDO_LABEL__LABELED": [few],
            "PSEUDO_LABEL__UNLABELED": [*rest, "shapes_unlabeled"],
        }

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
                few = images["PSEUDO_LABEL__LABELED"]
                self._c("b_c", percent, seed, b, everything, few)
                if percent < 100:
                    half = {"PSEUDO_LABEL__PHASE_C__MIX_PSEUDO": 0.5}
                    self._c("b_c_mix", percent, seed, b, everything, few, **half)
                for kind in ("labels", "joint") if percent < 100 else ("labels",):
                    self._student(
                        kind, percent, seed, everything, "BC",
                        folder=f"baseline_{kind}", PSEUDO_LABEL__BASELINE=kind, **images,
                    )  # fmt: skip
                if percent == FEW:
                    self._c("b_c_train_only", percent, seed, less, fewer, few)
            self._all_labels(seed)

    def _all_labels(self, seed: int) -> None:
        """All labels; of one length whatever --percents are, as there is one result for all."""
        length = self._length(MOST)
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
