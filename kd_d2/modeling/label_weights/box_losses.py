"""Detectron2's box losses before they are summed.

Symbols: N images, A anchors of all levels together, A_l of level l, P boxes.
"""

import torch
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.modeling import RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

_OF_BOXES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def weighted_box_loss(
    owner: RetinaNet | RPN | FastRCNNOutputLayers,
    anchors: Tensor,
    targets: Tensor,
    deltas: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sum of the losses of boxes times their weights.

    With weights of 1 it is the sum that Detectron2's ``_dense_box_regression_loss`` has.

    Args:
        owner: says how boxes are encoded, and which loss they have.
        anchors, targets, deltas: (P, 4); what is predicted are deltas from the anchors.
        weights: (P,).
    """
    transform, kind = owner.box2box_transform, owner.box_reg_loss_type
    if kind == "smooth_l1":
        wanted = transform.get_deltas(anchors, targets)
        losses = smooth_l1_loss(deltas, wanted, beta=owner.smooth_l1_beta)
        return (losses * weights[:, None]).sum()
    losses = _OF_BOXES[kind](transform.apply_deltas(deltas, anchors), targets)
    return (losses * weights).sum()


def weighted_dense_box_loss(
    owner: RetinaNet | RPN,
    anchors: list[Boxes],
    gt_boxes: list[Tensor],
    deltas: list[Tensor],
    positive: Tensor,
    weights: Tensor,
) -> Tensor:
    """:func:`weighted_box_loss` of the anchors that learn an object.

    Args:
        anchors: of each level.
        gt_boxes: (A, 4) of each image.
        deltas: (N, A_l, 4) of each level.
        positive, weights: (N, A).
    """
    squares = Boxes.cat(anchors).tensor.expand(len(positive), -1, -1)
    targets, deltas = torch.stack(gt_boxes), cat(deltas, dim=1)
    of_positive = (x[positive] for x in (squares, targets, deltas, weights))
    return weighted_box_loss(owner, *of_positive)
