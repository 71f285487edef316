"""The configs of a training with pseudo labels: each phase is an ordinary training.

Phase B learns what phase A has exported. Phase C begins with its weights, with a new optimiser and
a schedule of its own, and learns what people have labelled. Baselines are as long as both.
"""

import os
from typing import NamedTuple

from detectron2.config import CfgNode

from kd_d2.config.names import detector_node
from kd_d2.config.schedule import scaled_steps
from kd_d2.config.student import student_config

from .class_lists import PhaseClasses, classes_of
from .recipe import export_folder, labels_folder
from .relabeled import PREFIX as RELABELED
from .relabeled import View
from .trained_on import PREFIX as EXPORTED

VIEW = "labels.json"


def exported(cfg: CfgNode) -> str:
    """The data set of these labels."""
    return f"{EXPORTED}:{export_folder(cfg)}"


def phase_folder(cfg: CfgNode, name: str) -> str:
    """OUTPUT_DIR of a phase ("b", "c") or of a baseline."""
    return os.path.join(cfg.OUTPUT_DIR, f"phase_{name}" if name in "bc" else f"baseline_{name}")


class Phase(NamedTuple):
    """
    Attributes:
        name: "b", "c", or the baseline's.
        cfg: an ordinary config.
        view: of the data set that must be written before; None: there is none.
    """

    name: str
    cfg: CfgNode
    view: View | None = None


def plan(cfg: CfgNode, classes: PhaseClasses, num_labeled: int) -> list[Phase]:
    """The trainings that a config asks for, in their order."""
    node = cfg.PSEUDO_LABEL
    if node.BASELINE:
        return [baseline(cfg, classes, num_labeled)]
    phases = [phase_b(cfg, classes)] if "B" in node.PHASES else []
    if "C" in node.PHASES and node.LABELED:
        phases.append(phase_c(cfg, classes, num_labeled))
    return phases


def phase_b(cfg: CfgNode, classes: PhaseClasses) -> Phase:
    """The student on pseudo labels."""
    phase = _ordinary(cfg, "b", classes.taught)
    phase.DATASETS.TRAIN = (exported(phase),)
    _learn_pseudo_labels(phase)
    return Phase("b", phase)


def phase_c(cfg: CfgNode, classes: PhaseClasses, num_labeled: int) -> Phase:
    """The student of phase B on people's labels.

    Args:
        num_labeled: images that people have labelled.
    """
    phase, node = _ordinary(cfg, "c", classes.final), cfg.PSEUDO_LABEL.PHASE_C
    of_b = os.path.join(phase_folder(cfg, "b"), "model_final.pth")
    phase.MODEL.WEIGHTS = node.WEIGHTS or of_b
    if classes.final != classes.taught:
        phase.MODEL.WEIGHTS_CLASSES = list(classes.taught)
        _set_num_classes(phase, classes)
    _set_length(phase, phase_c_length(cfg, num_labeled))
    for solver in (phase.SOLVER, phase.SOLVER.TEACHER):
        if solver.BASE_LR is not None:
            solver.BASE_LR *= node.LR_FACTOR
    phase.SOLVER.WARMUP_ITERS = node.WARMUP_ITERS
    name, view = _labelled(phase, classes, node.MISSING)
    phase.DATASETS.TRAIN = (name,)
    if classes.missing and node.MISSING == "mask":
        phase.MODEL.LABEL_WEIGHTS.COVERED = True
    if (classes.missing and node.MISSING == "pseudo") or node.MIX_PSEUDO:
        _learn_pseudo_labels(phase)
    if node.MIX_PSEUDO:
        phase.DATASETS.TRAIN = (name, exported(phase))
        phase.DATALOADER.DATASET_SHARES = [1 - node.MIX_PSEUDO, node.MIX_PSEUDO]
    return Phase("c", phase, view)


def baseline(cfg: CfgNode, classes: PhaseClasses, num_labeled: int) -> Phase:
    """``PSEUDO_LABEL.BASELINE``, with as many iterations as phases B and C together."""
    kind = cfg.PSEUDO_LABEL.BASELINE
    phase = _ordinary(cfg, kind, classes.final)
    if classes.final != classes.taught:
        _set_num_classes(phase, classes)
    _set_length(phase, cfg.SOLVER.MAX_ITER + phase_c_length(cfg, num_labeled))
    joint = kind == "joint"
    missing = cfg.PSEUDO_LABEL.PHASE_C.MISSING if joint else "background"
    name, view = _labelled(phase, classes, missing, others=joint)
    phase.DATASETS.TRAIN = (name,)
    if joint:
        _learn_pseudo_labels(phase)
    return Phase(kind, phase, view)


def phase_c_length(cfg: CfgNode, num_labeled: int) -> int:
    """Iterations of phase C."""
    node = cfg.PSEUDO_LABEL.PHASE_C
    return max(node.MIN_ITERS, round(node.EPOCHS * num_labeled / cfg.SOLVER.IMS_PER_BATCH))


def evaluated(cfg: CfgNode) -> CfgNode:
    """The ordinary config of an evaluation: of the last training that a config asks for."""
    node = cfg.PSEUDO_LABEL
    last = "c" if node.LABELED and "C" in node.PHASES else "b"
    return _in_folder_of(cfg, node.BASELINE or last)


def _in_folder_of(cfg: CfgNode, name: str) -> CfgNode:
    """A config without phases, with the OUTPUT_DIR of one."""
    phase = cfg.clone()
    phase.defrost()
    phase.OUTPUT_DIR = phase_folder(cfg, name)
    phase.PSEUDO_LABEL.TEACHERS = []
    phase.PSEUDO_LABEL.LABELS_DIR = labels_folder(cfg)
    return phase


def _ordinary(cfg: CfgNode, name: str, classes: tuple[str, ...]) -> CfgNode:
    phase = _in_folder_of(cfg, name)
    # a student that has other classes for the time being is not evaluated
    tests = cfg.DATASETS.TEST
    phase.DATASETS.TEST = tuple(x for x in tests if classes_of(x, "DATASETS.TEST") == classes)
    return phase


def _set_num_classes(phase: CfgNode, classes: PhaseClasses) -> None:
    node = phase.MODEL.get(detector_node(student_config(phase).MODEL.META_ARCHITECTURE), {})
    if "NUM_CLASSES" in node:
        node.NUM_CLASSES = len(classes.final)


def _set_length(phase: CfgNode, length: int) -> None:
    solver = phase.SOLVER
    for part in (solver, solver.TEACHER):
        if part.STEPS is not None:
            part.STEPS = scaled_steps(part.STEPS, solver.MAX_ITER, length)
    solver.MAX_ITER = length


def _learn_pseudo_labels(phase: CfgNode) -> None:
    weights, node = phase.MODEL.LABEL_WEIGHTS, phase.PSEUDO_LABEL
    weights.ENABLED = weights.ENABLED or node.WEIGHTS != "none"
    weights.IGNORE = weights.IGNORE or node.USE_IGNORE
    # images on which the teachers were sure that there is nothing
    phase.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False


def _labelled(
    phase: CfgNode, classes: PhaseClasses, missing: str, others: bool = False
) -> tuple[str, View | None]:
    """The data set of people's labels in the student's classes: its name, and what it shows."""
    names = list(phase.PSEUDO_LABEL.LABELED)
    if len(names) == 1 and classes.labelled == classes.final and not others:
        return names[0], None
    if missing == "drop" or not classes.missing:
        missing = "background"
    known = dict.fromkeys([*classes.labelled, *classes.taught])
    view = View(
        datasets=names,
        classes=list(classes.final),
        drop=[name for name in known if name not in classes.final],
        pseudo_labels=export_folder(phase) if others or missing == "pseudo" else None,
        missing=missing,
        iou=phase.PSEUDO_LABEL.PHASE_C.MISSING_IOU,
        others=others,
    )
    return f"{RELABELED}:{os.path.abspath(os.path.join(phase.OUTPUT_DIR, VIEW))}", view
