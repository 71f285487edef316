"""What there is to see of a distiller on one image: features, attention, detections."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import Tensor, nn

from kd_d2.modeling.views import DetectorView, Stage
from kd_d2.visualization.attention import Relations
from kd_d2.visualization.detections import Boxes2D, labelled_boxes, predicted_boxes
from kd_d2.visualization.level_features import (
    MIN_CELLS,
    FeatureTile,
    feature_tiles,
    level_features,
    run_both,
)
from kd_d2.visualization.level_matches import LevelMatches, level_matches
from kd_d2.visualization.naming import ClassNames
from kd_d2.visualization.positives import Positives, positives


@dataclass
class Observation:
    """All that is shown of one image. Boxes are in pixels of ``image``.

    Attributes:
        image: (H, W, 3) uint8 RGB, as the model gets it.
        truth: None if the image has no labels.
        tiles: level name -> pictures.
        relations: None if the teacher relates no objects.
        matches: None if no head weighs levels against each other.
        positives: whose anchors learn what; empty if the student's labels are its own.
        teacher: the teacher's detections, None if there are none to be had.
        role: what the teacher is.
        notes: sentences that say what is missing, and why.
    """

    name: str
    image: np.ndarray
    truth: Boxes2D | None
    student: Boxes2D
    tiles: dict[str, list[FeatureTile]]
    teacher: Boxes2D | None = None
    role: str = "teacher"
    relations: Relations | None = None
    matches: LevelMatches | None = None
    positives: list[Positives] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def teacher_features_name(teacher: nn.Module) -> str:
    """What the teacher's features are called; a teacher may say so in ``features_name``."""
    return getattr(teacher, "features_name", "teacher")


def teacher_role(teacher: nn.Module) -> str:
    """What the teacher is; it may say so in ``role``."""
    return getattr(teacher, "role", "teacher")


def reads_labels(teacher: nn.Module) -> bool:
    """Whether the teacher needs ground truth; such a teacher has ``reads_labels = True``."""
    return getattr(teacher, "reads_labels", False)


@torch.no_grad()
def observe(
    distiller: nn.Module,
    x: dict,
    name: str,
    names: ClassNames,
    *,
    image_format: str = "BGR",
    style: str = "components",
    threshold: float = 0.3,
    limit: int = 10,
    objects: Sequence[int] | None = None,
) -> Observation:
    """Looks at one image.

    Args:
        distiller: in eval mode.
        x: an input of Detectron2's format; with ``instances`` if the image has labels.
        names: of the classes.
        image_format: cfg.INPUT.FORMAT.
        style: a key of ``FEATURE_STYLES``.
        threshold: least score of a detection.
        limit: most detections.
        objects: numbers (from 0) of those whose levels are shown, of the annotations or, without
            any, of the student's detections; None: the largest.

    Raises:
        ValueError: if features are not finite.
    """
    height, width = x["image"].shape[1:]
    x = {**x, "height": height, "width": width}  # no resizing of detections: all is drawn on x
    teacher, labelled = distiller.teacher, "instances" in x
    has_teacher = labelled or not reads_labels(teacher)
    gt = [x["instances"].to(distiller.device)] if labelled else None
    shares_labels = labelled and distiller.shares_labels
    stage = Stage.PREDICTIONS if shares_labels else Stage.FEATURES
    student, view = run_both(distiller, x, gt, has_teacher, stage)
    levels = level_features(distiller, student, view)
    relations = _relations(teacher, x, gt, student)
    kind, notes = type(teacher).__name__, []
    if not has_teacher:
        notes.append(
            f"This teacher ({kind}) reads the labels, and the image has none: only the student is "
            "shown."
        )
    elif relations is None:
        notes.append(
            f"This teacher ({kind}) relates no objects to each other as it is set up: there is no "
            "attention to show."
        )
    if not levels:
        notes.append(f"The image is too small: no level has {MIN_CELLS} cells a side.")
    shown = Observation(
        name=name,
        image=rgb_image(x["image"], image_format),
        truth=labelled_boxes(x["instances"]) if labelled else None,
        student=_detections(distiller, x, threshold, limit),
        tiles={
            level: feature_tiles(f, style, teacher_features_name(teacher))
            for level, f in levels.items()
        },
        role=teacher_role(teacher),
        relations=relations,
        notes=notes,
    )
    if view is not None:
        boxes = (shown.truth or shown.student).boxes
        shown.matches = level_matches(distiller, student, view, boxes, labelled, objects)
    if shares_labels:
        shown.positives = positives(distiller, student, view, gt)
    if has_teacher and distiller.has_teacher_inference:
        shown.teacher = _detections(distiller, x, threshold, limit, teacher=True)
        names.rename_teachers(shown.teacher)
    return shown


def rgb_image(image: Tensor, image_format: str) -> np.ndarray:
    """A model's input image (3, H, W) as (H, W, 3) uint8, RGB."""
    pixels = image.detach().cpu().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(convert_image_to_rgb(pixels, image_format)).astype(np.uint8)


def _relations(teacher: nn.Module, x: dict, gt, student: DetectorView) -> Relations | None:
    if gt is None or not hasattr(teacher, "explain"):
        return None
    explained = teacher.explain([x], gt, student)
    return explained[0] if explained else None


def _detections(distiller, x: dict, threshold: float, limit: int, teacher: bool = False):
    instances = distiller.inference([x], teacher=teacher)[0]["instances"]
    return predicted_boxes(instances, threshold, limit)
