"""What FCOS learns, as pure functions: who learns which box, how central it is, how wrong a box is.

Shapes: N images, R points of all levels together, M boxes of an image (padded with zero boxes to
the largest count of the batch). Distances are left, top, right, bottom, from a point to a box.
"""

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

# limits of denominators and of an IoU in a logarithm, all as in mmdetection
_LEAST_IOU = 1e-6
_LEAST_UNION = 1e-6
_EPS = 1e-7


def level_ranges(sizes_of_interest: list[float]) -> list[tuple[float, float]]:
    """The range of max(l, t, r, b) that each level is responsible for.

    >>> level_ranges([64, 128])
    [(-1.0, 64.0), (64.0, 128.0), (128.0, inf)]
    """
    bounds = [-1.0, *map(float, sizes_of_interest), float("inf")]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def distances_to_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances (..., 4) from points (..., 2) to boxes (..., 4); negative outside."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def distances_from_origin(boxes: Tensor) -> Tensor:
    """:func:`distances_to_boxes` from the point (0, 0), which serves any boxes (..., 4)."""
    return torch.cat((-boxes[..., :2], boxes[..., 2:]), dim=-1)


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes (..., 4) by their distances (..., 4) from points (..., 2)."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def pad_objects(gt_instances: list[Instances]) -> tuple[Tensor, Tensor]:
    """Boxes (N, M, 4) and classes (N, M) of a batch, padded with zeros.

    Padded to the largest count, and to at least one, so that no image is a special case.
    """
    boxes = [x.gt_boxes.tensor for x in gt_instances]
    classes = [x.gt_classes for x in gt_instances]
    nobody = boxes[0].new_zeros(1, 4), classes[0].new_zeros(1)
    pad = nn.utils.rnn.pad_sequence
    return (
        pad([*boxes, nobody[0]], batch_first=True)[:-1],
        pad([*classes, nobody[1]], batch_first=True)[:-1],
    )


@torch.no_grad()
def match_points(
    points: Tensor, strides: Tensor, ranges: Tensor, boxes: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Gives each point the smallest of the boxes that it may learn (FCOS, section 3.2 and 3.3).

    A box is a candidate for a point strictly inside the box and, with ``radius`` > 0, strictly
    inside the square of half-size ``radius * stride`` around the box's centre, if the largest of
    the four distances lies in the closed range of the point's level.

    Args:
        points: (R, 2) x, y.
        strides: (R,) stride of the point's level.
        ranges: (R, 2) lowest and highest distance, both included.
        boxes: (N, M, 4) with M >= 1. Zero boxes are no candidates, having no inside.
        radius: in strides; 0 switches centre sampling off.

    Returns:
        index of the matched box (N, R), arbitrary without one; whether there is one (N, R).
    """
    boxes = boxes.float()
    half = (radius * strides if radius > 0 else torch.full_like(strides, float("inf")))[None, None]
    nearest = farthest = None
    for axis in (0, 1):  # one axis at a time: an (N, M, R, 4) tensor would be large
        at = points[None, None, :, axis]  # (1, 1, R)
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]  # (N, M, 1)
        centre = (low + high) * 0.5
        far = torch.maximum(at - low, high - at)
        near = torch.minimum(
            at - torch.maximum(low, centre - half), torch.minimum(high, centre + half) - at
        )
        nearest = near if nearest is None else torch.minimum(nearest, near)
        farthest = far if farthest is None else torch.maximum(farthest, far)
    candidate = (nearest > 0) & (farthest >= ranges[:, 0]) & (farthest <= ranges[:, 1])
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    smallest, index = areas[..., None].where(candidate, float("inf")).min(dim=1)
    return index, torch.isfinite(smallest)


def centerness_targets(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (FCOS, eq. 3); 0 outside the box.

    Args:
        distances: (..., 4).

    >>> centerness_targets(torch.tensor([4.0, 2.0, 16.0, 2.0]))
    tensor(0.5000)
    """
    left_right, top_bottom = distances[..., [0, 2]], distances[..., [1, 3]]
    # A box without width, which only a foreign assignment can bring, must give 0 and not 0/0.
    ratios = [
        (pair.amin(-1) / pair.amax(-1).clamp(min=_EPS)).clamp(min=0)
        for pair in (left_right, top_bottom)
    ]
    return (ratios[0] * ratios[1]).sqrt()


def giou_loss_of_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of two boxes given by their distances from one point (arXiv 1902.09630).

    Denominators are at least 1e-7, and nothing is smoothed.

    Args:
        predicted: (..., 4).
        target: (..., 4).

    Returns:
        (...,) between 0 and 2.

    >>> one = torch.ones(4)
    >>> giou_loss_of_distances(one, one), giou_loss_of_distances(one, 2 * one)
    (tensor(0.), tensor(0.7500))
    """

    intersection, union = _intersection_and_union(predicted, target)
    enclosing = _area(torch.maximum(predicted, target))
    iou = intersection / union.clamp(min=_EPS)
    return 1 - iou + (enclosing - union) / enclosing.clamp(min=_EPS)


def iou_of_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU (...,) of two boxes (..., 4) given by their distances from one point.

    >>> one = torch.ones(4)
    >>> iou_of_distances(one, one), iou_of_distances(one, 2 * one)
    (tensor(1.), tensor(0.2500))
    """
    intersection, union = _intersection_and_union(predicted, target)
    return intersection / union.clamp(min=_LEAST_UNION)


def iou_loss_of_distances(predicted: Tensor, target: Tensor) -> Tensor:
    """-log(IoU) (...,) of two boxes (..., 4) given by their distances from one point.

    An IoU below 1e-6 counts as that (arXiv 1608.01471, with the limit of mmdetection).

    >>> one = torch.ones(4)
    >>> iou_loss_of_distances(one, 2 * one)
    tensor(1.3863)
    """
    return -iou_of_distances(predicted, target).clamp(min=_LEAST_IOU).log()


def _intersection_and_union(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    intersection = _area(torch.minimum(predicted, target))
    return intersection, _area(predicted) + _area(target) - intersection


def _area(distances: Tensor) -> Tensor:
    size = (distances[..., :2] + distances[..., 2:]).clamp(min=0)
    return size[..., 0] * size[..., 1]
