"""The configs of a training with pseudo labels: each phase is an ordinary training.

Phase B learns what phase A has exported. Phase C begins with its weights, with a new optimiser and
a schedule of its own, and learns what people have labelled. Baselines are as long as both.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from kd_d2.config.names import detector_node
from kd_d2.config.rules import ConfigError
from kd_d2.config.schedule import scale_distillation, scaled_steps
from kd_d2.config.student import student_config

from .class_lists import PhaseClasses, class_lists, classes_of
from .phase_data import exported, labelled_data, learn_pseudo_labels, mixed_data, set_covered
from .recipe import labels_folder
from .relabeled import View


def phase_folder(cfg: CfgNode, name: str) -> str:
    """OUTPUT_DIR of a phase ("b", "c") or of a baseline."""
    return os.path.join(cfg.OUTPUT_DIR, f"phase_{name}" if name in "bc" else f"baseline_{name}")


class Phase(NamedTuple):
    """
    Attributes:
        name: "b", "c", or the baseline's.
        cfg: an ordinary config.
        view: of people's labels, which must be written before; None: they are learned as they are.
        mixed: the same of the pseudo labels that are mixed in.
    """

    name: str
    cfg: CfgNode
    view: View | None = None
    mixed: View | None = None


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
    learn_pseudo_labels(phase)
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
    if not node.WEIGHTS and not phase.MODEL.WEIGHTS_CLASSES:
        _go_on_distilling(phase)
    for solver in (phase.SOLVER, phase.SOLVER.TEACHER):
        if solver.BASE_LR is not None:
            solver.BASE_LR *= node.LR_FACTOR
    phase.SOLVER.WARMUP_ITERS = node.WARMUP_ITERS
    if phase.SOLVER.TEACHER.WARMUP_ITERS is not None:
        phase.SOLVER.TEACHER.WARMUP_ITERS = node.WARMUP_ITERS
    name, view = labelled_data(phase, classes, node.MISSING)
    phase.DATASETS.TRAIN, mixed = (name,), None
    if (classes.missing and node.MISSING == "pseudo") or node.MIX_PSEUDO:
        learn_pseudo_labels(phase)
    if node.MIX_PSEUDO:
        pseudo, mixed = mixed_data(phase, classes)
        phase.DATASETS.TRAIN = (name, pseudo)
        phase.DATALOADER.DATASET_SHARES = [1 - node.MIX_PSEUDO, node.MIX_PSEUDO]
        classes = classes.with_pseudo_labels()
    set_covered(phase, classes)
    return Phase("c", phase, view, mixed)


def baseline(cfg: CfgNode, classes: PhaseClasses, num_labeled: int) -> Phase:
    """``PSEUDO_LABEL.BASELINE``, with as many iterations as phases B and C together."""
    kind = cfg.PSEUDO_LABEL.BASELINE
    phase = _ordinary(cfg, kind, classes.final)
    if classes.final != classes.taught:
        _set_num_classes(phase, classes)
    _set_length(phase, cfg.SOLVER.MAX_ITER + phase_c_length(cfg, num_labeled))
    missing, joint = cfg.PSEUDO_LABEL.PHASE_C.MISSING, kind == "joint"
    if joint:
        learn_pseudo_labels(phase)
        classes = classes.with_pseudo_labels()
    elif missing == "pseudo":
        missing = "background"
    name, view = labelled_data(phase, classes, missing, others=joint)
    phase.DATASETS.TRAIN = (name,)
    set_covered(phase, classes)
    return Phase(kind, phase, view)


def phase_c_length(cfg: CfgNode, num_labeled: int) -> int:
    """Iterations of phase C."""
    node = cfg.PSEUDO_LABEL.PHASE_C
    return max(node.MIN_ITERS, round(node.EPOCHS * num_labeled / cfg.SOLVER.IMS_PER_BATCH))


def evaluated(cfg: CfgNode) -> CfgNode:
    """The ordinary config of an evaluation: of the student of the last training of a config.

    Raises:
        ConfigError: the config asks for no training, or no test set has this student's classes.
        ValueError, OSError: see ``class_lists``.
    """
    labelled = cfg.clone()
    labelled.defrost()
    labelled.PSEUDO_LABEL.PHASES = [x for x in cfg.PSEUDO_LABEL.PHASES if x != "A"]
    classes = class_lists(labelled)  # if there are labels, no teacher needs to be at hand
    phases = plan(cfg, classes, num_labeled=1)
    if not phases:
        raise ConfigError(
            f"PSEUDO_LABEL.PHASES {list(cfg.PSEUDO_LABEL.PHASES)} trains no student that could be "
            "evaluated: add B."
        )
    check_tested(cfg, phases, classes)
    last = phases[-1].cfg
    last.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS  # and not those that it begins with
    last.MODEL.WEIGHTS_CLASSES = cfg.MODEL.WEIGHTS_CLASSES
    return last


def check_tested(cfg: CfgNode, phases: Sequence[Phase], classes: PhaseClasses) -> None:
    """
    Raises:
        ConfigError: no test set has the classes of the last phase's student.
    """
    if not phases or phases[-1].cfg.DATASETS.TEST or not cfg.DATASETS.TEST:
        return
    own = classes.taught if phases[-1].name == "b" else classes.final
    raise ConfigError(
        f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)} has not the classes of the student in its last "
        f"phase ({', '.join(own)}), in this order: give another test set, or none, or "
        "PSEUDO_LABEL.CLASSES or PHASE_C.CLASSES in the order of this one."
    )


def _ordinary(cfg: CfgNode, name: str, classes: tuple[str, ...]) -> CfgNode:
    phase = cfg.clone()
    phase.defrost()
    phase.OUTPUT_DIR = phase_folder(cfg, name)
    phase.PSEUDO_LABEL.TEACHERS = []
    phase.PSEUDO_LABEL.LABELS_DIR = labels_folder(cfg)
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
    scale_distillation(phase, solver.MAX_ITER / length)
    for part in (solver, solver.TEACHER):
        if part.STEPS is not None:
            part.STEPS = scaled_steps(part.STEPS, solver.MAX_ITER, length)
    solver.MAX_ITER = length


def _go_on_distilling(phase: CfgNode) -> None:
    """All that distills comes with the weights of phase B, where it was warmed up."""
    kd = phase.MODEL.KD
    kd.FREEZE_BACKBONE = None
    if kd.LGD.PRE_NONDISTILL != "auto":  # whose state comes with the weights, too
        kd.LGD.PRE_NONDISTILL = 0
