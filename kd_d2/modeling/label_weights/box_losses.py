"""Detectron2's box losses before they are summed.

Symbols: P boxes.
"""

from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

_OF_BOXES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def weighted_box_loss(
    anchors: Tensor,
    targets: Tensor,
    deltas: Tensor,
    weights: Tensor,
    transform: Box2BoxTransform,
    kind: str = "smooth_l1",
    beta: float = 0.0,
) -> Tensor:
    """Sum of the losses of boxes times their weights.

    With weights of 1 it is the sum that Detectron2's ``_dense_box_regression_loss`` has.

    Args:
        anchors, targets, deltas: (P, 4); what is predicted are deltas from the anchors.
        weights: (P,).
        kind: "smooth_l1", "giou", "diou" or "ciou".
        beta: of the first.
    """
    if kind == "smooth_l1":
        losses = smooth_l1_loss(deltas, transform.get_deltas(anchors, targets), beta=beta)
        return (losses * weights[:, None]).sum()
    losses = _OF_BOXES[kind](transform.apply_deltas(deltas, anchors), targets)
    return (losses * weights).sum()
