"""Whether the phases of a training with pseudo labels find what they need: labels, thresholds,
weights."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from kd_d2.checkpoint import CheckpointError, local_weights_path
from kd_d2.config.rules import ConfigError

from .class_lists import PhaseClasses
from .filters import default_t_ignore
from .label_set import num_labelled
from .merge import COMMON_THRESHOLD
from .phases import Phase
from .recipe import makes_labels, unified
from .thresholds import read_thresholds


def count_labelled(cfg: CfgNode) -> int:
    """Images of all data sets of LABELED.

    Raises:
        ConfigError: one of them is not labelled.
        ValueError, OSError: one cannot be read.
    """
    try:
        return sum(map(num_labelled, cfg.PSEUDO_LABEL.LABELED))
    except ConfigError as error:
        raise ConfigError(
            f"PSEUDO_LABEL.LABELED: {str(error).rstrip('.')}, and this one in UNLABELED."
        ) from None


def check_phases(cfg: CfgNode, classes: PhaseClasses, phases: Sequence[Phase]) -> None:
    """
    Args:
        phases: the plan of the config.

    Raises:
        ConfigError, CheckpointError: with one sentence on what is wrong.
    """
    for phase in phases:
        if phase.name == "c":
            _check_weights(phase, any(x.name == "b" for x in phases))
        if phase.name != "b":
            _check_missing(cfg, phase, classes)
    if makes_labels(cfg):
        _check_floor(cfg)


def _check_weights(phase: Phase, after_b: bool) -> None:
    given, path = phase.cfg.PSEUDO_LABEL.PHASE_C.WEIGHTS, phase.cfg.MODEL.WEIGHTS
    if given and "://" not in given:
        try:
            local_weights_path(given)
        except CheckpointError as error:
            raise CheckpointError(f"PSEUDO_LABEL.PHASE_C.WEIGHTS: {error}") from None
    elif not (given or after_b or os.path.isfile(path)):
        raise ConfigError(
            f"PSEUDO_LABEL.PHASES has C without B, and there are no weights of B ({path}): add B, "
            "or name weights in PSEUDO_LABEL.PHASE_C.WEIGHTS."
        )


def _check_missing(cfg: CfgNode, phase: Phase, classes: PhaseClasses) -> None:
    node = cfg.PSEUDO_LABEL
    if phase.name == "joint" or (phase.name == "c" and node.PHASE_C.MIX_PSEUDO):
        classes = classes.with_pseudo_labels()
    unknown = [name for name in classes.missing if name not in classes.taught]
    if unknown and node.PHASE_C.MISSING == "pseudo" and phase.name != "labels":
        raise ConfigError(
            f"PSEUDO_LABEL.PHASE_C.MISSING is pseudo, but no teacher knows {', '.join(unknown)}, "
            "and some of the images have no labels of that: set it mask or background, or leave "
            "these images out."
        )


def _check_floor(cfg: CfgNode) -> None:
    """Whether detections are kept from the lowest score on that labels are made of."""
    node = cfg.PSEUDO_LABEL
    threshold, several = _lowest_threshold(cfg), len(node.TEACHERS) > 1
    # those of several teachers are brought to a common scale, on which T_IGNORE is
    t_keep = COMMON_THRESHOLD if several else threshold
    given = node.FILTER.T_IGNORE
    t_ignore = float(default_t_ignore(t_keep)) if given is None else given
    least = t_ignore * threshold / t_keep
    if least < node.GENERATE.FLOOR:
        raise ConfigError(
            f"PSEUDO_LABEL.GENERATE.FLOOR is {node.GENERATE.FLOOR:g}, but labels and ignore boxes "
            f"begin at the score {least:.4g} (MERGE.THRESHOLD, FILTER.T_IGNORE), and what lies "
            "below FLOOR is lost for ever: lower it, or raise them."
        )


def _lowest_threshold(cfg: CfgNode) -> float:
    merge = cfg.PSEUDO_LABEL.MERGE
    if merge.THRESHOLDS == "global":
        return merge.THRESHOLD
    if merge.THRESHOLDS == "file":
        names = [text.partition("=")[0] for text in cfg.PSEUDO_LABEL.TEACHERS]
        found = read_thresholds(merge.THRESHOLD_FILE, unified(cfg).known_to(names))
        return min(t for classes in found.values() for t in classes.values())
    return min(merge.THRESHOLD, merge.LIMITS[0])
