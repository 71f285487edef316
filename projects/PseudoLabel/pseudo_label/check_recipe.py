"""Whether a training with pseudo labels can be run to its end, before hours are spent on its
first phase."""

import os

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from kd_d2.config.check import check_config
from kd_d2.config.names import detector_node
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import student_config
from kd_d2.data.labels import has_mask_head
from kd_d2.data.requirements import check_available, check_datasets
from kd_d2.modeling.label_weights import weigh_labels

from .check_phases import check_phases, count_labelled
from .check_thresholds import check_thresholds
from .class_lists import PhaseClasses, class_lists
from .config import check_pseudo_label_config
from .merge_settings import NEEDS_LABELS
from .phases import check_tested, plan
from .recipe import (
    export_settings,
    filter_settings,
    generate_settings,
    labels_own_images,
    makes_labels,
    merge_settings,
    teacher_sources,
    unified,
)


def check_recipe(cfg: CfgNode) -> None:
    """
    Args:
        cfg: a finished config with ``PSEUDO_LABEL.TEACHERS``.

    Raises:
        ConfigError: with one sentence on what is wrong.
        ValueError, OSError: a teacher, a data set or a folder cannot be used.
    """
    check_pseudo_label_config(cfg)
    node = cfg.PSEUDO_LABEL
    classes = class_lists(cfg)
    generate_settings(cfg)
    if node.MERGE.THRESHOLDS in NEEDS_LABELS:  # which are read when they are needed
        check_available({node.MERGE.THRESHOLD_LABELS or node.LABELED[0]: "PSEUDO_LABEL.MERGE"})
        filter_settings(cfg)
    else:
        merge, keep = merge_settings(cfg, classes.taught), filter_settings(cfg)
        if makes_labels(cfg):
            names = [x.name for x in teacher_sources(cfg)]
            check_thresholds(merge, keep, unified(cfg, classes.taught), names, images=())
    export_settings(cfg)
    _check_images(cfg)
    if cfg.DATASETS.TEST:
        check_datasets(cfg, ("TEST",))
    _check_what_is_learned(cfg)
    _check_outputs(cfg, classes)
    phases = plan(cfg, classes, count_labelled(cfg))
    check_tested(cfg, phases, classes)
    for phase in phases:
        check_config(phase.cfg)
        _check_student(phase.cfg)
    check_phases(cfg, classes, phases)
    fills = classes.missing and node.PHASE_C.MISSING == "pseudo" and "C" in node.PHASES
    if fills and "A" in node.PHASES and not labels_own_images(cfg):
        raise ConfigError(
            f"PSEUDO_LABEL.LABELED has images with no labels of {', '.join(classes.missing)}, and "
            "PHASE_C.MISSING pseudo takes boxes of them from the teachers, which do not see these "
            "images: set PSEUDO_LABEL.PHASE_B_IMAGES unlabeled+labeled, or another PHASE_C.MISSING."
        )
    _check_mirrored(cfg)


def _check_mirrored(cfg: CfgNode) -> None:
    """Whether agreement with mirrored images is known where it is asked for."""
    node = cfg.PSEUDO_LABEL
    if node.FILTER.MIN_AGREEMENT is not None and not node.GENERATE.FLIP:
        raise ConfigError(
            "PSEUDO_LABEL.FILTER.MIN_AGREEMENT needs mirrored images: set "
            "PSEUDO_LABEL.GENERATE.FLIP True."
        )
    reliable = cfg.MODEL.LABEL_WEIGHTS.BOX_LOSS == "reliable"
    if reliable and makes_labels(cfg) and not node.GENERATE.FLIP:
        raise ConfigError(
            "MODEL.LABEL_WEIGHTS.BOX_LOSS reliable needs mirrored images, without which no pseudo "
            "box trains boxes: set PSEUDO_LABEL.GENERATE.FLIP True, or BOX_LOSS all."
        )


def _check_images(cfg: CfgNode) -> None:
    node = cfg.PSEUDO_LABEL
    named = dict.fromkeys(node.LABELED, "PSEUDO_LABEL.LABELED")
    for name in node.UNLABELED if "A" in node.PHASES else ():
        file, _, root = name.partition(",")
        is_list = file.endswith(".json")
        if os.path.isdir(name) or (is_list and os.path.isfile(file) and os.path.isdir(root)):
            continue
        if is_list or os.sep in name:
            what = "FILE.json,FOLDER of a list and its images" if is_list else "folder"
            raise ConfigError(f"PSEUDO_LABEL.UNLABELED names {name}, which is no {what}.")
        named[name] = "PSEUDO_LABEL.UNLABELED"
    check_available(named)


def _check_what_is_learned(cfg: CfgNode) -> None:
    masks = "MODEL.MASK_ON" if has_mask_head(cfg) else ""
    if key := masks or ("MODEL.KEYPOINT_ON" if cfg.MODEL.KEYPOINT_ON else ""):
        raise ConfigError(
            f"{key} is True, and pseudo labels are boxes only: set it False, or take a student "
            "without it."
        )


def _check_outputs(cfg: CfgNode, classes: PhaseClasses) -> None:
    arch = student_config(cfg).MODEL.META_ARCHITECTURE
    value = cfg.MODEL.get(detector_node(arch), {}).get("NUM_CLASSES")
    if value is not None and value != len(classes.taught):
        raise ConfigError(
            f"The teachers have {len(classes.taught)} classes ({', '.join(classes.taught)}), but "
            f"MODEL.{detector_node(arch)}.NUM_CLASSES is {value}: set it to "
            f"{len(classes.taught)}, or map the teachers' classes (PSEUDO_LABEL.CLASS_MAPS)."
        )


def _check_student(cfg: CfgNode) -> None:
    """Whether its detector can look at weights and ignore boxes."""
    student = student_config(cfg).clone()
    student.defrost()
    student.MODEL.DEVICE = "cpu"
    detector = build_model(student)
    try:
        weigh_labels(detector, student)
    except ConfigError:
        raise
    except ValueError as error:  # of a detector that kd_d2 does not know
        raise ConfigError(
            f"{str(error).rstrip('.')}: set PSEUDO_LABEL.USE_IGNORE False and WEIGHTS none."
        ) from None
