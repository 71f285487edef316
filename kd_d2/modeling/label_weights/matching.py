"""Which label an anchor or region has been given, and what that label weighs.

Detectors say which box and which class each anchor learns, and not which object that is. An object
is found again by both being equal, so any way of assigning serves.

Symbols: R anchors or regions of an image, M objects, I boxes to ignore.
"""

import torch
from detectron2.structures import Boxes, Instances, pairwise_ioa, pairwise_iou
from torch import Tensor

CLS_WEIGHTS, BOX_WEIGHTS, IGNORED = "gt_weights", "gt_box_weights", "ignore_boxes"
"""Fields of the ground truth: (M,) what each label counts in the losses of classes, and of boxes;
and the boxes (I, 4) of what may be an object, see ``Attached``."""


def has_weights(gt: list[Instances]) -> bool:
    """Whether the labels of a batch carry weights."""
    return all(x.has(CLS_WEIGHTS) for x in gt)


@torch.no_grad()
def weights_of(
    boxes: Tensor, classes: Tensor | None, positive: Tensor, gt: Instances
) -> tuple[Tensor, Tensor]:
    """The weights of the objects that anchors learn: in the losses of classes, and of boxes.

    Of several equal objects the largest weight counts.

    Args:
        boxes: (R, 4) that the anchors learn, as the ground truth has them.
        classes: (R,) likewise; None where classes are not told apart, as in an RPN.
        positive: (R,) bool; the others, background, weigh 1 and 0.
        gt: of the image, with weights.

    Returns:
        two (R,) float32.

    >>> from detectron2.structures import Boxes, Instances
    >>> gt = Instances((9, 9), gt_boxes=Boxes([[0, 0, 4, 4], [2, 2, 8, 8]]))
    >>> gt.gt_weights, gt.gt_box_weights = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.0])
    >>> learned = torch.tensor([[2.0, 2, 8, 8], [0, 0, 4, 4], [0, 0, 4, 4]])
    >>> weights_of(learned, None, torch.tensor([True, True, False]), gt)
    (tensor([0.2500, 0.5000, 1.0000]), tensor([0.0000, 0.5000, 0.0000]))
    """
    own = gt.gt_boxes.tensor
    if not len(own):
        ones = torch.ones_like(positive, dtype=torch.float32)
        return ones, torch.zeros_like(ones)
    same = positive[:, None].expand(-1, len(own))  # (R, M)
    if classes is not None:
        same = same & (classes[:, None] == gt.gt_classes)
    for x, y in zip(boxes.unbind(1), own.to(boxes.dtype).unbind(1), strict=True):
        same = same & (x[:, None] == y)  # one number at a time: (R, M, 4) would be large
    of_class, of_box = (
        w.float().where(same, -torch.inf).amax(1) for w in (gt.gt_weights, gt.gt_box_weights)
    )
    found = of_class.isfinite()
    return of_class.where(found, 1.0), of_box.where(found, 0.0)


@torch.no_grad()
def weights_of_nearest(anchors: Tensor, classes: Tensor, positive: Tensor, gt: Instances) -> Tensor:
    """Weights (R,) in the losses of classes, where only the class is known that an anchor learns.

    Of the objects of that class, it is the one with which the anchor has the largest IoU.

    Args:
        anchors: (R, 4).
        classes, positive: (R,); background weighs 1.
        gt: of the image, with weights.
    """
    if not len(gt):
        return torch.ones_like(positive, dtype=torch.float32)
    iou = pairwise_iou(gt.gt_boxes, Boxes(anchors.to(gt.gt_boxes.tensor.dtype)))  # (M, R)
    iou = iou.masked_fill(gt.gt_classes[:, None] != classes, -1.0)
    return gt.gt_weights.float()[iou.argmax(0)].where(positive, 1.0)


@torch.no_grad()
def on_uncertain(boxes: Tensor, gt: Instances, overlap: float) -> Tensor:
    """Which anchors or regions (R,) lie on what may be an object, by so much of their own area.

    Args:
        boxes: (R, 4).

    >>> from kd_d2.modeling.label_weights import Attached
    >>> gt = Instances((40, 40), ignore_boxes=Attached(torch.tensor([[0.0, 0, 20, 20]]), 0))
    >>> on_uncertain(torch.tensor([[5.0, 5, 25, 25], [10, 10, 30, 30]]), gt, 0.5)
    tensor([ True, False])
    """
    if not gt.has(IGNORED) or not len(gt.get(IGNORED).tensor):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    uncertain = Boxes(gt.get(IGNORED).tensor.to(boxes.dtype))
    return pairwise_ioa(uncertain, Boxes(boxes)).amax(0) >= overlap
