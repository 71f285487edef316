"""A teacher of pseudo labels: its config and weights, who it is, and the detector."""

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import detectron2
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

import kd_d2
from kd_d2.checkpoint import CheckpointError, file_sha256, load_detector_weights, local_weights_path
from kd_d2.config.check import check_config
from kd_d2.config.names import detector_node
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import student_config, without_unused_nodes
from kd_d2.config.teacher import own_settings
from kd_d2.engine import load_config
from kd_d2.experiments.machine import describe_machine
from kd_d2.model_zoo import resolve_config_file, resolve_weights
from kd_d2.visualization.naming import known_names

from .run_folder import TeacherRecord, hash_of
from .settings import GenerateSettings

_TTA = ("tta_sizes", "tta_flip")
IDENTITY = (
    *("config", "weights_sha256", "floor", "topk", "nms", "size", "flip", "batch", "amp"),
    *("max_pixels", "shard_size", "image_list", *_TTA),
)
"""Keys of a teacher's provenance that its detections depend on; those of TTA are there if it is on,
so that runs without it are those of versions that did not have it."""


class TeacherSource(NamedTuple):
    """Where a teacher is.

    Attributes:
        name: of its folder in the run.
        config_file: a path, or a name in a model zoo; a distiller's stands for its student.
        weights: "": those that the config's model zoo publishes, else the config's MODEL.WEIGHTS.
        opts: KEY, VALUE, ... that override the config.
    """

    name: str
    config_file: str
    weights: str = ""
    opts: Sequence[str] = ()


def parse_teacher(text: str, opts: Sequence[str] = (), where: str = "--teacher") -> TeacherSource:
    """A teacher as people name it, NAME=CONFIG or NAME=CONFIG,WEIGHTS.

    Args:
        where: it is named, for people.

    Raises:
        ConfigError: it is not of this form.

    >>> parse_teacher("big=retinanet.yaml,model.pth")
    TeacherSource(name='big', config_file='retinanet.yaml', weights='model.pth', opts=())
    """
    name, equals, files = text.partition("=")
    config, _, weights = files.partition(",")
    if not (name and equals and config):
        raise ConfigError(f"{where} is {text!r}: it must be NAME=CONFIG or NAME=CONFIG,WEIGHTS.")
    return TeacherSource(name, config, weights, opts)


def teacher_config(source: TeacherSource, settings: GenerateSettings) -> CfgNode:
    """The finished config of a teacher, with the settings of the run and its weights in it.

    Raises:
        ValueError: its name or its config cannot be used.
        OSError: its config or its weights are not there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", source.name):
        raise ConfigError(
            f"A teacher is called {source.name!r}: take letters, digits, '.', '_' and '-'."
        )
    cfg = student_config(load_config(resolve_config_file(source.config_file), list(source.opts)))
    arch = cfg.MODEL.META_ARCHITECTURE
    node = cfg.MODEL.get(detector_node(arch), {})
    rotated = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RRPN"
    if "SCORE_THRESH_TEST" not in node or cfg.MODEL.LOAD_PROPOSALS or rotated:
        raise ConfigError(
            f"Teacher {source.name} ({source.config_file}) is no detector that finds upright boxes "
            f"by itself, with MODEL.{detector_node(arch)}.SCORE_THRESH_TEST: take another one."
        )
    node.SCORE_THRESH_TEST = float(settings.floor)
    if settings.nms:
        node.NMS_THRESH_TEST = float(settings.nms)
    if settings.size is not None:
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = settings.size
    cfg.TEST.DETECTIONS_PER_IMAGE = settings.topk
    cfg.MODEL.WEIGHTS = resolve_weights(source.weights, source.config_file) or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"Teacher {source.name} needs weights: give {source.name}=CONFIG,WEIGHTS."
        )
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    try:
        check_config(cfg)
    except ConfigError as error:
        raise ConfigError(f"Teacher {source.name} ({source.config_file}): {error}") from None
    return cfg


def class_names(cfg: CfgNode) -> tuple[str, ...]:
    """As its data sets call the classes; "class 0", ... where nobody knows."""
    count = cfg.MODEL[detector_node(cfg.MODEL.META_ARCHITECTURE)].NUM_CLASSES
    return tuple(known_names(cfg, count) or [f"class {i}" for i in range(count)])


def build_detector(cfg: CfgNode) -> nn.Module:
    """The detector of :func:`teacher_config`, on the CPU, filled and ready.

    Raises:
        CheckpointError: the weights are not all of its weights, or more.
    """
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    load_detector_weights(detector, cfg.MODEL.WEIGHTS)
    heads = getattr(detector, "roi_heads", None)
    for part in ("mask_on", "keypoint_on"):  # not stored, and dearer than the boxes
        if getattr(heads, part, False):
            setattr(heads, part, False)
    return detector.eval().requires_grad_(False)


def load_teacher(name: str, cfg: CfgNode) -> nn.Module:
    """:func:`build_detector`, whose errors say which teacher they are of."""
    try:
        return build_detector(cfg)
    except CheckpointError as error:
        raise CheckpointError(f"Teacher {name}: {error}") from error


def teacher_record(
    source: TeacherSource, settings: GenerateSettings, image_list: str, about: dict[str, Any]
) -> TeacherRecord:
    """Who a teacher is and what it is asked to do.

    Args:
        image_list: hash of the images.
        about: what else its provenance is to have.

    Raises:
        ValueError, OSError: it cannot be used.
    """
    cfg = teacher_config(source, settings)
    node = cfg.MODEL[detector_node(cfg.MODEL.META_ARCHITECTURE)]
    weights = local_weights_path(cfg.MODEL.WEIGHTS)
    provenance = {
        "config": _own(cfg),
        "weights_sha256": file_sha256(weights),
        **_asked(settings),
        "nms": node.NMS_THRESH_TEST,
        "size": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
        "image_list": image_list,
        "config_file": _from_anywhere(source.config_file),
        "weights": _from_anywhere(source.weights),
        "opts": list(source.opts),
        **about,
    }
    return TeacherRecord(source.name, class_names(cfg), teacher_hash(provenance), provenance)


def teacher_hash(provenance: Mapping[str, Any]) -> str:
    """Hash of all that a teacher's detections depend on."""
    return hash_of({key: provenance[key] for key in IDENTITY if key in provenance})


def _asked(settings: GenerateSettings) -> dict[str, Any]:
    """What of the settings detections depend on."""
    off = [key for key in _TTA if not getattr(settings, key)]
    keys = (key for key in IDENTITY if hasattr(settings, key) and key not in off)
    return {key: getattr(settings, key) for key in keys}


def source_of(record: TeacherRecord) -> TeacherSource:
    """Where the teacher of a record is."""
    keys = ("config_file", "weights", "opts")
    return TeacherSource(record.name, *(record.provenance[key] for key in keys))


def _from_anywhere(name: str) -> str:
    """A path as it is called from any folder; other names are left alone."""
    return os.path.abspath(name) if os.path.isfile(name) else name


def _own(cfg: CfgNode) -> dict[str, Any]:
    """What of a config shapes the detector, without what the run's settings say."""
    own = own_settings(without_unused_nodes(cfg))
    set_by_run = ("SCORE_THRESH_TEST", "NMS_THRESH_TEST")
    return {key: own[key] for key in sorted(own) if not key.endswith(set_by_run)}


def surroundings(device: str) -> dict[str, Any]:
    """By what program, how and where labels are made: of the provenance of each teacher."""
    packages = ("torchvision", "numpy", "pillow")
    return {
        "versions": {
            "kd_d2": kd_d2.__version__,
            "commit": _commit(),
            "detectron2": detectron2.__version__,
            **{name: version(name) for name in ("torch", *packages)},
            "python": platform.python_version(),
        },
        "hardware": describe_machine(device),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Of the checkout that kd_d2 is in; None if it is in none."""
    folder = Path(kd_d2.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    command = ["git", "-C", os.fspath(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # no git
        return None
