"""What the config node ``PSEUDO_LABEL`` asks of the stages that make labels."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from kd_d2.config.rules import ConfigError
from kd_d2.registry import unknown_name

from .arguments import pair
from .class_map import Unified, map_of, unify
from .export import FOLDER, ExportSettings
from .filters import FilterSettings
from .label_set import LabelSet, read_label_set
from .merge_settings import NEEDS_LABELS, MergeSettings
from .settings import GenerateSettings
from .teachers import TeacherSource, class_names, parse_teacher, teacher_config


def labels_images(cfg: CfgNode) -> bool:
    """Whether a config is one of a training that begins with pseudo labels."""
    return bool(cfg.PSEUDO_LABEL.TEACHERS)


def makes_labels(cfg: CfgNode) -> bool:
    """Whether phase A is run."""
    return "A" in cfg.PSEUDO_LABEL.PHASES and cfg.PSEUDO_LABEL.BASELINE != "labels"


def labels_folder(cfg: CfgNode) -> str:
    """Where phase A works."""
    return os.path.abspath(cfg.PSEUDO_LABEL.LABELS_DIR or os.path.join(cfg.OUTPUT_DIR, "labels"))


def export_folder(cfg: CfgNode) -> str:
    """Where phase A puts what phase B learns."""
    return os.path.join(labels_folder(cfg), FOLDER)


def image_sources(cfg: CfgNode) -> list[str]:
    """Data sets and folders whose images the teachers label."""
    node = cfg.PSEUDO_LABEL
    parts = {"unlabeled": list(node.UNLABELED), "labeled": list(node.LABELED)}
    return [name for part in node.PHASE_B_IMAGES.split("+") for name in parts[part]]


def labels_own_images(cfg: CfgNode) -> bool:
    """Whether teachers label images that people have labelled, too."""
    node = cfg.PSEUDO_LABEL
    return bool(node.LABELED) and "labeled" in node.PHASE_B_IMAGES.split("+")


def teacher_sources(cfg: CfgNode) -> list[TeacherSource]:
    """
    Raises:
        ConfigError: one is not NAME=CONFIG or NAME=CONFIG,WEIGHTS.
    """
    where = "PSEUDO_LABEL.TEACHERS"
    return [parse_teacher(text, where=where) for text in cfg.PSEUDO_LABEL.TEACHERS]


def generate_settings(cfg: CfgNode, device: str = "") -> GenerateSettings:
    """
    Raises:
        ConfigError: a value cannot be.
    """
    node = cfg.PSEUDO_LABEL.GENERATE
    return GenerateSettings(
        **{key.lower(): value for key, value in node.items()},
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        device=device,
    )


def merge_settings(cfg: CfgNode, classes: Sequence[str]) -> MergeSettings:
    """
    Args:
        classes: of the student, in the order of its outputs.

    Raises:
        ValueError, OSError: a value cannot be, or labels for thresholds cannot be read.
    """
    node = cfg.PSEUDO_LABEL.MERGE
    return MergeSettings(
        class_maps=class_maps(cfg),
        classes=tuple(classes),
        mode=node.MODE,
        iou=node.IOU,
        score_type=node.SCORE_TYPE,
        min_votes=node.MIN_VOTES,
        threshold_mode=node.THRESHOLDS,
        threshold=node.THRESHOLD,
        beta=node.BETA,
        limits=tuple(node.LIMITS),
        threshold_file=node.THRESHOLD_FILE or None,
        labels=_threshold_labels(cfg) if node.THRESHOLDS in NEEDS_LABELS else None,
    )


def _threshold_labels(cfg: CfgNode) -> LabelSet:
    name = cfg.PSEUDO_LABEL.MERGE.THRESHOLD_LABELS
    if name:
        return read_label_set(name, "PSEUDO_LABEL.MERGE.THRESHOLD_LABELS")
    return people_s_labels(cfg)


def people_s_labels(cfg: CfgNode) -> LabelSet:
    """The first data set of LABELED."""
    return read_label_set(cfg.PSEUDO_LABEL.LABELED[0], "PSEUDO_LABEL.LABELED")


def class_maps(cfg: CfgNode) -> dict[str, str]:
    """Teacher -> file of its class map.

    Raises:
        ConfigError: an entry is not NAME=FILE, or there is no such teacher.
    """
    where = "PSEUDO_LABEL.CLASS_MAPS"
    found = dict(pair(where, text) for text in cfg.PSEUDO_LABEL.CLASS_MAPS)
    teachers = [source.name for source in teacher_sources(cfg)]
    for name in found:
        if name not in teachers:
            raise ConfigError(f"{where}: {unknown_name('teacher', name, teachers)}")
    return found


def filter_settings(cfg: CfgNode) -> FilterSettings:
    """
    Raises:
        ConfigError: a value cannot be.
    """
    return FilterSettings(**{key.lower(): value for key, value in cfg.PSEUDO_LABEL.FILTER.items()})


def export_settings(cfg: CfgNode) -> ExportSettings:
    """
    Raises:
        ValueError: a value cannot be.
    """
    return ExportSettings(weight_mode=cfg.PSEUDO_LABEL.WEIGHTS, w_min=cfg.PSEUDO_LABEL.W_MIN)


def unified(cfg: CfgNode, order: Sequence[str] = ()) -> Unified:
    """The classes of all teachers together, as their class maps call them.

    Args:
        order: as of :func:`unify`.

    Raises:
        ValueError, OSError: a teacher or a class map cannot be used.
    """
    settings, maps = generate_settings(cfg), class_maps(cfg)
    own = {x.name: class_names(teacher_config(x, settings)) for x in teacher_sources(cfg)}
    return unify([map_of(classes, maps.get(name)) for name, classes in own.items()], order)
