"""Foreground and background maps of a batch (PGD, section 3.2 and eq. 3).

Shapes: N images, A locations of all levels together, M objects of an image (padded with zero boxes
to the largest count), k key locations of an object.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.quality import probability_and_iou

from .key_locations import gaussian_weights, log_quality, select_key_locations

# The logarithm of 0: finite, and so low that the other factor of a quality drowns in it. Qualities
# of 0 are equal, then, and an object with few overlapping predictions has its last key locations
# anywhere, as in the release.
_LOG_0 = -1e30


@dataclass
class PredictionGuidedMaps:
    """Where to imitate. All (N, A), float32.

    Attributes:
        cls: foreground weights of the classification tower, 0 to 1.
        reg: those of the box tower.
        background: 1 in no object's box, else 0.
    """

    cls: Tensor
    reg: Tensor
    background: Tensor


@torch.no_grad()
def prediction_guided_maps(
    teacher: DensePredictions,
    boxes: Tensor,
    classes: Tensor,
    *,
    k: int,
    cls_exponent: float,
    reg_exponent: float,
    low_bound: float = 0.0,
    jitter: bool = True,
    transposed: bool = False,
) -> PredictionGuidedMaps:
    """Maps from the teacher's predictions and the annotations.

    Key locations of an object are those of the highest quality ``p^(1-xi) * IoU^xi``, p being the
    probability of the object's class there. Candidates outside the box shape the fitted Gaussian,
    but weigh nothing.

    Args:
        teacher: its predictions, one location a cell.
        boxes: (N, M, 4) with M >= 1, zero boxes for nobody.
        classes: (N, M).
        k: key locations of an object; fewer where there are fewer locations.
        cls_exponent, reg_exponent: xi of either map.
        low_bound: weights below become 0.
        jitter: see :func:`gaussian_weights`.
        transposed: read points as (y, x) when testing whether they lie in a box, as PGD's release
            does for FCOS and AutoAssign.
    """
    log_probability, log_iou = (
        x.log_().clamp_(min=_LOG_0)
        for x in probability_and_iou(teacher.logits, teacher.boxes, boxes, classes)
    )
    points = teacher.points.flip(-1) if transposed else teacher.points

    def foreground(exponent: float) -> Tensor:
        quality = log_quality(log_probability, log_iou, exponent)
        index, counted = select_key_locations(quality, teacher.valid, k)
        weights = gaussian_weights(teacher.points[index], counted, jitter)
        weights = weights * inside(points[index], boxes[:, :, None])
        weights = weights.masked_fill(weights < low_bound, 0.0)
        # the largest weight of a location that is key to several objects
        return weights.new_zeros(teacher.valid.shape).scatter_reduce(
            1, index.flatten(1), weights.flatten(1), "amax"
        )

    background = ~inside(points, boxes[:, :, None]).any(1) & teacher.valid
    return PredictionGuidedMaps(
        foreground(cls_exponent), foreground(reg_exponent), background.float()
    )


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (..., 2) lie in boxes (..., 4), strictly; broadcasts.

    >>> inside(torch.tensor([[4.0, 4.0], [4.0, 8.0]]), torch.tensor([0.0, 0.0, 8.0, 8.0]))
    tensor([ True, False])
    """
    x, y = (side.contiguous() for side in points.unbind(-1))
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x > x1) & (y > y1) & (x < x2) & (y < y2)
