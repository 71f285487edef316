"""What ATSS learns, as pure functions: who learns which box, and which box an output stands for.

Shapes: N images, R anchors of all levels together, R_l of level l, M boxes of an image (padded with
zero boxes to the largest count of the batch), C candidate anchors of a box.
"""

import math

import torch
from torch import Tensor

from kd_d2.modeling.detectors.fcos_targets import distances_to_boxes, iou_of_distances

# A box grows or shrinks from its anchor by no more than from 16 to 1000 pixels, or back.
_LOG_SIZE_LIMIT = math.log(1000 / 16)
# An anchor's centre must lie inside the box by more pixels than this.
INSIDE_MARGIN = 0.01


def centres_of(boxes: Tensor) -> Tensor:
    """Centres (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5


def decode_deltas(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes (..., 4) that an output stands for.

    The inverse of Detectron2's ``Box2BoxTransform.get_deltas``. Unlike its ``apply_deltas`` it
    limits the change of size in both directions, and broadcasts.

    Args:
        deltas: (..., 4), moves of the centre in units of the anchor's size and logarithms of the
            change of size, both times ``weights``.
        anchors: (..., 4).
        weights: of dx, dy, dw, dh.

    >>> decode_deltas(torch.tensor([5.0, 0, 0, 0]), torch.tensor([0.0, 0, 8, 8]), (10, 10, 5, 5))
    tensor([ 4.,  0., 12.,  8.])
    """
    # by numbers: a tensor of the weights would make the host wait for a GPU
    dx, dy, dw, dh = (x / w for x, w in zip(deltas.unbind(-1), weights, strict=True))
    size = anchors[..., 2:] - anchors[..., :2]
    centre = centres_of(anchors) + torch.stack((dx, dy), dim=-1) * size
    growth = torch.stack((dw, dh), dim=-1).clamp(-_LOG_SIZE_LIMIT, _LOG_SIZE_LIMIT).exp()
    half = size * growth * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def nearest_decodable(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) as they are after encoding and :func:`decode_deltas`.

    What is further than its limits from an anchor's (..., 4) size is brought there: a box of one
    pixel on P3 grows a little.

    >>> nearest_decodable(torch.tensor([9.0, 4, 11, 4.5]), torch.tensor([0.0, 0, 64, 64]))
    tensor([ 9.0000,  3.7380, 11.0000,  4.7620])
    """
    limit = math.exp(_LOG_SIZE_LIMIT)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    limited = size.clamp(anchor_size / limit, anchor_size * limit)
    centre, half = centres_of(boxes), limited * 0.5
    near = torch.cat((centre - half, centre + half), dim=-1)
    return boxes.where((size == limited).all(-1, keepdim=True), near)


def nearest_anchors(
    centres: Tensor, valid: Tensor, box_centres: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The ``min(k, valid anchors)`` anchors of a level nearest to each box (ATSS, algorithm 1).

    Where several are equally far and not all of them fit, ``torch.topk`` chooses: always the same
    ones on the same device, but not by any rule.

    Args:
        centres: (R_l, 2) of the anchors.
        valid: (N, R_l), which anchors may be chosen in each image.
        box_centres: (N, M, 2).

    Returns:
        index of the anchors (N, M, min(k, R_l)), nearest first; which of them are valid.
    """
    dx = centres[:, 0] - box_centres[..., 0, None]  # (N, M, R_l)
    dy = centres[:, 1] - box_centres[..., 1, None]
    squared = (dx * dx + dy * dy).masked_fill(~valid[:, None], float("inf"))
    distance, index = squared.topk(min(k, len(centres)), largest=False)
    return index, distance.isfinite()


def mean_plus_std(values: Tensor, counted: Tensor) -> Tensor:
    """Mean plus unbiased standard deviation of the counted values along the last dimension.

    One value has no deviation, and none at all have the mean 0.

    Args:
        values, counted: (..., C).

    >>> mean_plus_std(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor([3.4142])
    """
    count = counted.sum(-1, keepdim=True)
    mean = values.where(counted, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = ((values - mean) ** 2).where(counted, 0.0).sum(-1, keepdim=True)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()


@torch.no_grad()
def match_anchors(
    anchors: list[Tensor], valid: list[Tensor], boxes: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Gives each anchor the box that it learns (ATSS, arXiv 1912.02424, algorithm 1).

    Candidates of a box are its ``k`` nearest anchors of every level. Its positives are those whose
    IoU reaches the candidates' mean plus standard deviation and whose centre lies inside the box.
    A box too small to hold the centre of an anchor has none. An anchor that is positive for several
    boxes learns the one with the largest IoU, the first of equal ones.

    Args:
        anchors: (R_l, 4) of each level.
        valid: (N, R_l) of each level, which anchors take part in each image.
        boxes: (N, M, 4) with M >= 1. Zero boxes have no positives, having no inside.

    Returns:
        index of the matched box (N, R), arbitrary without one; whether there is one (N, R).
    """
    boxes = boxes.float()
    box_centres = centres_of(boxes)
    indices, found, start = [], [], 0
    for level_anchors, level_valid in zip(anchors, valid, strict=True):
        nearest = nearest_anchors(centres_of(level_anchors), level_valid, box_centres, k)
        indices.append(nearest[0] + start)
        found.append(nearest[1])
        start += len(level_anchors)
    index, found = torch.cat(indices, dim=-1), torch.cat(found, dim=-1)  # (N, M, C)

    candidates = torch.cat(anchors)[index]  # (N, M, C, 4)
    centres = centres_of(candidates)
    to_box = distances_to_boxes(centres, boxes[:, :, None])
    iou = iou_of_distances(distances_to_boxes(centres, candidates), to_box)
    positive = found & (iou >= mean_plus_std(iou, found)) & (to_box.amin(-1) > INSIDE_MARGIN)

    claims = iou.new_full((*boxes.shape[:2], start), -1.0)  # (N, M, R)
    claims.scatter_(-1, index, iou.where(positive, -1.0))
    best, owner = claims.max(dim=1)
    return owner, best >= 0
