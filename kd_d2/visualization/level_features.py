"""The features of a student and its teacher on one image, level by level, and their pictures."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances
from torch import Tensor, nn

from kd_d2.modeling.distill_heads import pair_levels
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest
from kd_d2.visualization.channel_energy import feature_energy
from kd_d2.visualization.principal_components import fit_basis, to_colors

MIN_CELLS = 4  # a map of fewer cells a side shows nothing
FEATURE_STYLES = ("components", "energy")


@dataclass
class LevelFeatures:
    """One level of one image, without padding.

    Attributes:
        student: (C, h, w).
        teacher: (C', h, w); None if there is no teacher, or it has no level of this stride.
        compared: (C', h, w), the student's features as the loss compares them with the teacher's,
            that is behind the head's adapter; None if no head has one (even one that does nothing).
        is_adapted: ``compared`` differs from ``student``.
    """

    student: Tensor
    teacher: Tensor | None = None
    compared: Tensor | None = None
    is_adapted: bool = False


@dataclass
class FeatureTile:
    """One picture of one level: (h, w, 3) colours or (h, w) energies in [0, 1], and a caption."""

    title: str
    pixels: np.ndarray
    caption: str = ""


def run_both(
    distiller: nn.Module,
    x: dict,
    gt: list[Instances] | None,
    with_teacher: bool = True,
    stage: Stage = Stage.FEATURES,
) -> tuple[DetectorView, DetectorView | None]:
    """The student's and the teacher's views of an image, not beyond ``stage``."""
    request = ViewRequest(stage)
    student = distiller.stages.run([x], request)
    if not with_teacher:
        return student, None
    with _asked(distiller.teacher, request):
        return student, distiller.teacher([x], gt, student)


@contextlib.contextmanager
def _asked(teacher: nn.Module, only: ViewRequest) -> Iterator[None]:
    """While open, nothing else is asked of the teacher, and so no ground truth of it."""
    request = teacher.request  # the distiller has set it
    teacher.request = only
    try:
        yield
    finally:
        teacher.request = request


def level_features(
    distiller: nn.Module, student: DetectorView, teacher: DetectorView | None
) -> dict[str, LevelFeatures]:
    """Level name -> features of a batch's first image; levels with too few cells are left out."""
    shapes = distiller.stages.feature_shapes
    pairs = {}
    if teacher is not None:
        pairs = dict(pair_levels(shapes, distiller.teacher.feature_shapes))
    adapter, adapted_levels = _adapter(distiller)
    height, width = student.images.image_sizes[0]
    levels = {}
    for name, features in student.features.items():
        h, w = math.ceil(height / shapes[name].stride), math.ceil(width / shapes[name].stride)
        if min(h, w) < MIN_CELLS:
            continue
        level = levels[name] = LevelFeatures(features[0, :, :h, :w])
        if name not in pairs:
            continue
        level.teacher = teacher.features[pairs[name]][0, :, :h, :w]
        if name in adapted_levels:
            level.compared = adapter(features)[0, :, :h, :w]
            level.is_adapted = not isinstance(adapter, nn.Identity)
    return levels


def _adapter(distiller: nn.Module) -> tuple[nn.Module | None, set[str]]:
    """The ``adapter`` of the first head that pairs levels, and the student's that pass it."""
    for head in distiller.heads.values():
        adapter = getattr(head, "adapter", None)
        if isinstance(adapter, nn.Module) and hasattr(head, "levels"):
            return adapter, {s for s, _ in head.levels}
    return None, set()


def feature_tiles(level: LevelFeatures, style: str, teacher_name: str) -> list[FeatureTile]:
    """The pictures of a level, from the student's to the teacher's.

    Args:
        style: a key of ``FEATURE_STYLES``.

    Raises:
        ValueError: if features are not finite.
    """
    if style == "energy":
        sides = [("student", level.student), (teacher_name, level.teacher)]
        if level.is_adapted:
            sides.insert(1, ("adapted", level.compared))
        return [FeatureTile(t, feature_energy(f)) for t, f in sides if f is not None]
    # Student and teacher live in different spaces, so each has colours of its own. What the loss
    # compares lives in one: equal features then have equal colours.
    sides = [("student", level.student, fit_basis(level.student))]
    if level.teacher is not None:
        basis = fit_basis(level.teacher)
        if level.compared is not None:
            title = "adapted" if level.is_adapted else "compared"
            sides.append((title, level.compared, basis))
        sides.append((teacher_name, level.teacher, basis))
    tiles = []
    for title, features, basis in sides:
        pixels, share = to_colors(features, basis)
        tiles.append(FeatureTile(title, pixels, f"{100 * share:.0f} %"))
    return tiles
