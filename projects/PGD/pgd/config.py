"""The config node of PGD, and the check of its values."""

from detectron2.config import CfgNode as CN

from kd_d2.config.names import detector_node
from kd_d2.config.rules import (
    ConfigError,
    check_values,
    list_of,
    number,
    one_of,
    share,
    truth,
    whole,
)

# Detectors for which the release tests whether a point lies in a box with x and y swapped
SWAPS_AXES = ("FCOS", "AutoAssign")
DETECTORS = ("FCOS", "ATSS", "GFL", "AutoAssign", "DDOD")
FAULTS = ("shared_masks", "swapped_axes", "mixed_strides")


def add_pgd_config(cfg: CN) -> None:
    """Adds ``MODEL.KD.PGD`` to a config that has ``MODEL.KD``, in place."""
    pgd = cfg.MODEL.KD.PGD = CN()
    # Key locations of an object, over all levels. The paper: 9 for ATSS, 30 for the others.
    pgd.TOPK = 30
    # xi of the quality p^(1 - xi) IoU^xi, by which key locations are chosen, for the maps of the
    # classification tower and of the box tower.
    pgd.CLS_EXPONENT = 0.8
    pgd.REG_EXPONENT = 0.6
    # Move key locations by up to 0.05 pixels before the Gaussian fit, at random, as the release
    # does. Without, the maps are the same each time.
    pgd.JITTER = True
    # Weights of the maps below this become 0.
    pgd.LOW_BOUND = 0.0
    # Temperature of the attentions.
    pgd.TEMPERATURE = 0.8
    # Weights of the imitation: in the classification tower at foreground and background, in the box
    # tower, and of the attentions. The paper couples them: BETA = ALPHA / 2, GAMMA = 1.6 ALPHA.
    pgd.ALPHA = 0.08
    pgd.BETA = 0.04
    pgd.GAMMA = 0.128
    pgd.DELTA = 0.0008
    # Factors of the classification tower's imitation, one for each level from fine to coarse.
    pgd.LEVEL_WEIGHTS = [1.0, 1.25, 1.5, 1.75, 2.0]
    # "corrected", or "reference": what the release computes, its faults included, to reproduce
    # published results. See projects/PGD/README.md.
    pgd.MODE = "corrected"
    # Which of them "reference" has. shared_masks: masks of all images on each image; swapped_axes:
    # x and y in FCOS and AutoAssign; mixed_strides: GFL's boxes with the stride of another level.
    pgd.REFERENCE_FAULTS = list(FAULTS)


_VALUES = {
    "TOPK": whole(1),
    "CLS_EXPONENT": share,
    "REG_EXPONENT": share,
    "JITTER": truth,
    "LOW_BOUND": number(least=0, below=1),
    "TEMPERATURE": number(above=0),
    **{key: number(least=0) for key in ("ALPHA", "BETA", "GAMMA", "DELTA")},
    "LEVEL_WEIGHTS": list_of(number(least=0), "numbers, one for each level", empty=False),
    "MODE": one_of("corrected", "reference"),
    "REFERENCE_FAULTS": list_of(one_of(*FAULTS), f"some of {', '.join(FAULTS)}"),
}


def check_pgd_config(cfg: CN) -> None:
    """Checks ``MODEL.KD.PGD`` of a finished config.

    Raises:
        ConfigError: with one sentence on the first wrong value.
    """
    check_values(cfg, {"MODEL.KD.PGD": _VALUES})
    kd = cfg.MODEL.KD
    if "PGD" not in kd.HEADS:
        return
    if kd.STUDENT in ("RetinaNet", "GeneralizedRCNN"):
        has = "several anchors in a cell" if kd.STUDENT == "RetinaNet" else "no towers"
        raise ConfigError(
            f"PGD (MODEL.KD.HEADS) needs a dense student with one location a cell, and a "
            f"{kd.STUDENT} has {has}: take {', '.join(DETECTORS)}, or another head such as PKD."
        )
    levels = cfg.MODEL.get(detector_node(kd.STUDENT), {}).get("IN_FEATURES", kd.PGD.LEVEL_WEIGHTS)
    if len(levels) != len(kd.PGD.LEVEL_WEIGHTS):
        raise ConfigError(
            f"MODEL.KD.PGD.LEVEL_WEIGHTS has {len(kd.PGD.LEVEL_WEIGHTS)} numbers, and the student "
            f"has {len(levels)} levels: give one for each."
        )
    if kd.PGD.MODE == "reference" and kd.STUDENT not in DETECTORS:
        raise ConfigError(
            f"MODEL.KD.PGD.MODE is reference, and PGD's release has no {kd.STUDENT}, only "
            f"{', '.join(DETECTORS)}: set it to corrected."
        )
