"""RetinaNet's losses of labels that weigh differently.

Symbols: N images, R anchors of all levels together, K classes.
"""

import torch
from detectron2.layers import cat
from detectron2.modeling import RetinaNet
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from fvcore.nn import sigmoid_focal_loss_jit
from torch.nn import functional as F

from .box_losses import weighted_dense_box_loss
from .settings import LabelWeights


def weigh_retinanet(detector: RetinaNet, settings: LabelWeights) -> None:
    """Changes an instance; its losses stay the same where all weights are 1, there is nothing to
    ignore, and all classes were looked for."""
    train, losses, gt = detector.forward_training, detector.losses, []

    def forward_training(images, features, predictions, gt_instances):
        gt[:] = gt_instances  # the losses are not told
        return train(images, features, predictions, gt_instances)

    # not where labels are made, as they may be another network's
    def weighted(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        squares, background = Boxes.cat(anchors).tensor, detector.num_classes
        gt_labels = settings.leave_out(gt_labels, squares, background, gt)
        pred_logits = settings.hide_uncovered(pred_logits, gt_labels, gt)
        labels = torch.stack(gt_labels)
        positive = (labels >= 0) & (labels != background)
        weights = settings.of_anchors(gt_labels, gt_boxes, positive, gt)
        args = anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes
        return losses(*args) if weights is None else weighted_losses(detector, *args, *weights)

    detector.forward_training, detector.losses = forward_training, weighted


def weighted_losses(
    detector: RetinaNet,
    anchors,
    pred_logits,
    gt_labels,
    pred_anchor_deltas,
    gt_boxes,
    cls_weights,
    box_weights,
) -> dict[str, torch.Tensor]:
    """``RetinaNet.losses`` with a factor (N, R) for each anchor in either loss."""
    gt_labels = torch.stack(gt_labels)
    valid = gt_labels >= 0
    positive = valid & (gt_labels != detector.num_classes)
    count = positive.sum().item()
    get_event_storage().put_scalar("num_pos_anchors", count / len(gt_labels))
    normalizer = detector._ema_update("loss_normalizer", max(count, 1), 100)
    target = F.one_hot(gt_labels[valid], num_classes=detector.num_classes + 1)[:, :-1]
    focal = sigmoid_focal_loss_jit(
        cat(pred_logits, dim=1)[valid],
        target.to(pred_logits[0].dtype),
        alpha=detector.focal_loss_alpha,
        gamma=detector.focal_loss_gamma,
    )
    boxes = weighted_dense_box_loss(
        detector, anchors, gt_boxes, pred_anchor_deltas, positive, box_weights
    )
    return {
        "loss_cls": (focal * cls_weights[valid][:, None]).sum() / normalizer,
        "loss_box_reg": boxes / normalizer,
    }
