"""Which data sets a phase learns, and what its losses make of labels that are not a person's."""

import itertools
import os

from detectron2.config import CfgNode

from .class_lists import PhaseClasses
from .recipe import export_folder
from .relabeled import PREFIX as RELABELED
from .relabeled import View
from .trained_on import PREFIX as EXPORTED

VIEW, MIXED = "labels.json", "pseudo_labels.json"


def exported(cfg: CfgNode) -> str:
    """The data set of the labels of phase A."""
    return f"{EXPORTED}:{export_folder(cfg)}"


def learn_pseudo_labels(phase: CfgNode) -> None:
    weights, node = phase.MODEL.LABEL_WEIGHTS, phase.PSEUDO_LABEL
    weights.ENABLED = weights.ENABLED or node.WEIGHTS != "none"
    weights.IGNORE = weights.IGNORE or node.USE_IGNORE
    # images on which the teachers were sure that there is nothing
    phase.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False


def labelled_data(
    phase: CfgNode, classes: PhaseClasses, missing: str, others: bool = False
) -> tuple[str, View | None]:
    """The data set of people's labels in the student's classes: its name, and what it shows.

    Args:
        classes: with those of all data sets that the phase learns.
        missing: ``PHASE_C.MISSING``, of classes that a data set lacks.
        others: pseudo-labelled images that nobody has labelled are read, too.
    """
    names = list(phase.PSEUDO_LABEL.LABELED)
    if classes.labelled == (classes.final,) and not others:
        return names[0], None
    if missing == "drop" or not classes.missing:
        missing = "background"
    view = View(
        datasets=names,
        classes=list(classes.final),
        drop=_dropped(classes),
        pseudo_labels=export_folder(phase) if others or missing == "pseudo" else None,
        missing=missing,
        iou=phase.PSEUDO_LABEL.PHASE_C.MISSING_IOU,
        others=others,
    )
    return _shown(phase, VIEW), view


def mixed_data(phase: CfgNode, classes: PhaseClasses) -> tuple[str, View | None]:
    """The data set of pseudo labels in the student's classes, as of :func:`labelled_data`."""
    if classes.final == classes.taught:
        return exported(phase), None
    masks = phase.PSEUDO_LABEL.PHASE_C.MISSING == "mask"
    view = View(
        datasets=[exported(phase)],
        classes=list(classes.final),
        drop=_dropped(classes),
        missing="mask" if masks else "background",
    )
    return _shown(phase, MIXED), view


def _dropped(classes: PhaseClasses) -> list[str]:
    known = dict.fromkeys(itertools.chain(*classes.labelled, classes.taught))
    return [name for name in known if name not in classes.final]


def _shown(phase: CfgNode, file: str) -> str:
    """The data set that a view in this file shows."""
    return f"{RELABELED}:{os.path.abspath(os.path.join(phase.OUTPUT_DIR, file))}"


def set_covered(phase: CfgNode, classes: PhaseClasses) -> None:
    """Leaves classes out of the losses on images that have no labels of them, if that is asked for.

    Args:
        classes: with those of all data sets that the phase learns.
    """
    if classes.missing and phase.PSEUDO_LABEL.PHASE_C.MISSING == "mask":
        phase.MODEL.LABEL_WEIGHTS.COVERED = True
