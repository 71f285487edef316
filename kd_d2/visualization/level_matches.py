"""Which of the student's levels match the teacher's feature of an object, as a matrix.

A head that weighs levels against each other has a method

    match_levels(student, regions, pooled) -> (R, L) | None

of the student's view, :class:`Regions` and the teacher's pooled features (R, C, h, w): the weights
of the student's levels, which sum to 1, or None where it weighs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import nn

from kd_d2.modeling.regions import Regions
from kd_d2.modeling.views import DetectorView
from kd_d2.visualization.attention import write_values

MOST_OBJECTS = 14  # more rows than that cannot be read


@dataclass
class LevelMatches:
    """Of some objects of one image.

    Attributes:
        objects: their numbers in the annotations, or among the student's detections.
        weights: (M, L).
        levels: names of the student's levels.
        teacher: (M,) column of the level whose stride is that of the teacher's; -1: there is none.
        of_truth: the numbers are of annotations.
    """

    objects: list[int]
    weights: np.ndarray
    levels: list[str]
    teacher: np.ndarray
    of_truth: bool


@torch.no_grad()
def level_matches(
    distiller: nn.Module,
    student: DetectorView,
    teacher: DetectorView,
    boxes: np.ndarray,
    of_truth: bool,
    objects: Sequence[int] | None = None,
) -> LevelMatches | None:
    """What the first head that weighs levels says of the boxes of an image.

    Args:
        boxes: (M, 4) in pixels of the network's input.
        objects: numbers of those that are wanted; None: the largest.

    Returns:
        None if no head weighs levels.
    """
    head = next((h for h in distiller.heads.values() if hasattr(h, "match_levels")), None)
    if head is None:
        return None
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    chosen = objects if objects is not None else np.argsort(-sizes, kind="stable")[:MOST_OBJECTS]
    numbers = sorted(int(i) for i in chosen if i < len(boxes))[:MOST_OBJECTS]
    own = student.images.tensor
    tensor = torch.as_tensor(boxes[numbers], dtype=torch.float32, device=own.device).view(-1, 4)
    regions = Regions.of_images([tensor], [torch.ones(len(tensor), dtype=torch.bool)])
    seen = distiller.teacher.read_regions(teacher, regions, {"pooled"})
    weights = head.match_levels(student, regions, seen.pooled)
    if weights is None:
        return None
    shapes = distiller.stages.feature_shapes
    strides = [x.stride for x in shapes.values()]
    columns = [strides.index(s) if s in strides else -1 for s in seen.strides.tolist()]
    return LevelMatches(numbers, weights.cpu().numpy(), list(shapes), np.array(columns), of_truth)


def draw_level_matches(axes: Axes, matches: LevelMatches, names: list[str]) -> None:
    """A row for each object, a column for each level; the teacher's level has a frame.

    Args:
        names: the class of each object, by its number.
    """
    axes.imshow(matches.weights, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    rows = [f"{i + 1} {names[i]}" for i in matches.objects]
    axes.set_yticks(range(len(rows)), rows, fontsize=6.5)
    axes.set_xticks(range(len(matches.levels)), [x.upper() for x in matches.levels], fontsize=6.5)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel("level of the student", fontsize=6.5, labelpad=2)
    write_values(axes, matches.weights, 1.0, 6)
    for i, j in enumerate(matches.teacher):
        if j >= 0:
            axes.add_patch(
                Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor="red", lw=1.4)
            )
