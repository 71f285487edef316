"""Score voting: detections move towards their neighbours (PAA, arXiv 2007.08103, section 3.4).

Shapes: D detections, J candidates of an image.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

_LEAST_IOU = 0.01
_VARIANCE = 0.025


@torch.no_grad()
def vote_boxes(
    boxes: Tensor,
    classes: Tensor,
    candidate_boxes: Tensor,
    candidate_scores: Tensor,
    candidate_classes: Tensor,
) -> Tensor:
    """Mean boxes (D, 4) of all candidates around the detections, weighted by score and nearness.

    A candidate of the detection's class and of IoU above 0.01 with it has the weight
    ``score * exp(-(1 - IoU)^2 / 0.025)`` (eq. 12). A detection without area, which has no IoU with
    itself, stays where it is.

    Args:
        boxes, classes: (D, 4) and (D,) of the detections, which are candidates themselves.
        candidate_boxes, candidate_scores, candidate_classes: (J, 4), (J,), (J,) before NMS.

    >>> candidates = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10]])
    >>> scores, same = torch.tensor([0.9, 0.6]), torch.tensor([0, 0])
    >>> vote_boxes(candidates[:1], same[:1], candidates, scores, same)
    tensor([[ 0.1509,  0.0000, 10.1509, 10.0000]])
    """
    iou = pairwise_iou(Boxes(boxes), Boxes(candidate_boxes))
    near = (iou > _LEAST_IOU) & (classes[:, None] == candidate_classes)
    weights = candidate_scores * torch.exp(-((1 - iou) ** 2) / _VARIANCE)
    weights = weights.where(near, 0.0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights @ candidate_boxes / total, boxes)
