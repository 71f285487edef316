"""How well each location predicts each object: by its class probability and by its box.

Shapes: N images, A locations of all levels together, M objects of an image (padded with zero boxes
to the largest count), K classes.
"""

import torch
from torch import Tensor

_LEAST_UNION = 1e-6


@torch.no_grad()
def probability_and_iou(
    logits: Tensor, predicted: Tensor, boxes: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor]:
    """What each location gives the class of each object, and how well its box fits.

    Args:
        logits: (N, A, K).
        predicted: (N, A, 4), boxes of the locations.
        boxes: (N, M, 4) of the objects. Zero boxes have IoU 0.
        classes: (N, M), below K.

    Returns:
        probability of the object's class (N, M, A), IoU with its box (N, M, A); float32.

    >>> logits = torch.tensor([[[0.0, 9.0], [4.0, 9.0]]])
    >>> predicted = torch.tensor([[[0.0, 0, 4, 4], [2, 0, 6, 4]]])
    >>> boxes, classes = torch.tensor([[[0.0, 0, 4, 4]]]), torch.tensor([[0]])
    >>> probability_and_iou(logits, predicted, boxes, classes)
    (tensor([[[0.5000, 0.9820]]]), tensor([[[1.0000, 0.3333]]]))
    """
    index = classes[..., None].expand(-1, -1, logits.shape[1])
    # rows in one piece: the gather over strided ones takes longer than this copy
    probability = logits.transpose(1, 2).contiguous().gather(1, index).float().sigmoid_()
    return probability, pairwise_iou(predicted.float(), boxes.float())


@torch.no_grad()
def quality_score(probability: Tensor, iou: Tensor, exponent: float) -> Tensor:
    """``probability^(1 - xi) * iou^xi`` (PGD, arXiv 2203.05469, eq. 1, without its indicator).

    Args:
        probability, iou: of equal shapes, 0 to 1.
        exponent: xi, 0 to 1: how much the box counts.

    >>> quality_score(torch.tensor([0.5, 0.25]), torch.tensor([0.0, 0.64]), 0.5)
    tensor([0.0000, 0.4000])
    """
    return probability.pow(1 - exponent).mul_(iou.pow(exponent))


def pairwise_iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """IoU of each location's box with each object; unions count as 1e-6 at least.

    Args:
        predicted: (N, A, 4).
        boxes: (N, M, 4).

    Returns:
        (N, M, A).
    """
    corners = predicted.permute(2, 0, 1).contiguous()[:, :, None]  # (4, N, 1, A)
    sides = []
    for axis in (0, 1):  # one axis at a time: an (N, M, A, 4) tensor would be large
        low = torch.maximum(corners[axis], boxes[..., axis, None])
        high = torch.minimum(corners[axis + 2], boxes[..., axis + 2, None])
        sides.append(high.sub_(low).clamp_(min=0))
    intersection = sides[0].mul_(sides[1])
    union = _areas(predicted)[:, None] + _areas(boxes)[..., None] - intersection
    return intersection.div_(union.clamp_(min=_LEAST_UNION))


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
