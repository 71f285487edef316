"""The losses of R-CNNs of labels that weigh differently: of the RPN and of the ROI heads.

Symbols: N images, A anchors of all levels together, R regions.
"""

import torch
from detectron2.layers import cat, cross_entropy
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from kd_d2.config.rules import ConfigError

from .box_losses import weighted_box_loss, weighted_dense_box_loss
from .covered import covered_classes, hide_background
from .matching import has_weights, on_uncertain, weights_of
from .settings import LabelWeights

_CLS, _BOX, _COVERED = "label_cls_weights", "label_box_weights", "label_covered_classes"


def weigh_rcnn(detector: GeneralizedRCNN, settings: LabelWeights) -> None:
    """Changes an instance; its losses stay the same where all weights are 1, there is nothing to
    ignore, and all classes were looked for.

    Raises:
        ConfigError: classes may not be covered, and they are not independent.
        ValueError: its RPN or its predictors are not Detectron2's.
    """
    generator, heads = detector.proposal_generator, detector.roi_heads
    if not isinstance(generator, RPN):
        raise ValueError(
            f"MODEL.LABEL_WEIGHTS: the losses of a {type(generator).__name__} cannot be weighted; "
            "set MODEL.PROPOSAL_GENERATOR.NAME to RPN."
        )
    predictors = heads.box_predictor
    for predictor in predictors if isinstance(heads, CascadeROIHeads) else [predictors]:
        _weigh_predictor(predictor, settings)
    _weigh_rpn(generator, settings)
    _weigh_regions(heads, settings)


def _weigh_rpn(rpn: RPN, settings: LabelWeights) -> None:
    """Anchors on what may be an object are no background, and the others know their weights.

    Objects of a class that was not looked for are background of the RPN all the same, as it asks
    for objects of any class: with the positives of such images alone, it would take everything for
    one. The harm is small, since of many thousand anchors some hundred are drawn, few of them on
    such objects; boxes to ignore prevent it.

    Both losses are divided by a number that is fixed, and not by one of anchors. So weights that
    are normalised are divided by their mean: over all sampled anchors in the loss of objectness,
    most of which are background, and over the positives in that of boxes.
    """
    label_anchors, losses, weights = rpn.label_and_sample_anchors, rpn.losses, [None]

    def label(anchors, gt_instances):
        labels, boxes = label_anchors(anchors, gt_instances)
        squares = Boxes.cat(anchors).tensor
        labels = settings.leave_out(labels, squares, 0, gt_instances)
        stacked = torch.stack(labels)
        weights[0] = settings.of_anchors(
            labels, boxes, stacked == 1, gt_instances, classes=False, counted=stacked >= 0
        )
        return labels, boxes

    def weighted(anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        args = anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        if weights[0] is None:
            return losses(*args)
        return weighted_rpn_losses(rpn, *args, *weights[0])

    rpn.label_and_sample_anchors, rpn.losses = label, weighted


def weighted_rpn_losses(
    rpn: RPN,
    anchors,
    pred_objectness_logits,
    gt_labels,
    pred_anchor_deltas,
    gt_boxes,
    cls_weights: Tensor,
    box_weights: Tensor,
) -> dict[str, Tensor]:
    """``RPN.losses`` with a factor (N, A) for each anchor in either loss."""
    num_images, gt_labels = len(gt_labels), torch.stack(gt_labels)
    positive, valid = gt_labels == 1, gt_labels >= 0
    storage = get_event_storage()
    storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / num_images)
    storage.put_scalar("rpn/num_neg_anchors", (gt_labels == 0).sum().item() / num_images)
    boxes = weighted_dense_box_loss(
        rpn, anchors, gt_boxes, pred_anchor_deltas, positive, box_weights
    )
    objectness = F.binary_cross_entropy_with_logits(
        cat(pred_objectness_logits, dim=1)[valid],
        gt_labels[valid].to(torch.float32),
        reduction="none",
    )
    normalizer = rpn.batch_size_per_image * num_images
    losses = {
        "loss_rpn_cls": (objectness * cls_weights[valid]).sum() / normalizer,
        "loss_rpn_loc": boxes / normalizer,
    }
    return {k: v * rpn.loss_weight.get(k, 1.0) for k, v in losses.items()}


def _weigh_regions(heads, settings: LabelWeights) -> None:
    """Regions on what may be an object are no background, and the others know their weights."""
    sample = heads.label_and_sample_proposals

    def seen(regions, targets):
        pairs = zip(regions, targets, strict=True)
        return [_seen(x, y, heads.num_classes, settings) for x, y in pairs]

    def sampled(proposals, targets):
        return seen(sample(proposals, targets), targets)

    heads.label_and_sample_proposals = sampled
    if isinstance(heads, CascadeROIHeads):
        match = heads._match_and_label_boxes

        def matched(proposals, stage, targets):
            return seen(match(proposals, stage, targets), targets)

        heads._match_and_label_boxes = matched


def _seen(regions: Instances, gt: Instances, background: int, settings: LabelWeights) -> Instances:
    """The sampled regions of an image that count, with their weights as fields."""
    if settings.use_ignore:
        uncertain = on_uncertain(regions.proposal_boxes.tensor, gt, settings.overlap)
        regions = regions[~(uncertain & (regions.gt_classes == background))]
    if settings.use_weights and has_weights([gt]):
        boxes = (regions.gt_boxes if regions.has("gt_boxes") else regions.proposal_boxes).tensor
        positive = regions.gt_classes != background
        of_class, of_box = weights_of(boxes, regions.gt_classes, positive, gt)
        regions.set(_CLS, of_class)
        regions.set(_BOX, of_box)
    if settings.use_covered:
        regions.set(_COVERED, covered_classes(gt, background).expand(len(regions), -1))
    return regions


def _weigh_predictor(predictor: FastRCNNOutputLayers, settings: LabelWeights) -> None:
    """
    Raises:
        ConfigError: classes may not be covered, and it has a softmax.
        ValueError: it has losses of its own, or a federated loss.
    """
    losses = predictor.losses
    own = getattr(type(predictor), "losses", None) is not FastRCNNOutputLayers.losses
    if own or predictor.use_fed_loss:
        raise ValueError(
            f"MODEL.LABEL_WEIGHTS: the losses of a {type(predictor).__name__} "
            f"{'are its own' if own else 'are federated'}, and cannot be weighted: take "
            "FastRCNNOutputLayers with MODEL.ROI_BOX_HEAD.USE_FED_LOSS False."
        )

    if settings.use_covered and not predictor.use_sigmoid_ce:
        raise ConfigError(
            "MODEL.LABEL_WEIGHTS.COVERED: no class can be left out of the loss of a softmax; set "
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True, or COVERED False and complete the labels with "
            "pseudo boxes."
        )

    def weighted(predictions, proposals):
        if settings.use_covered:
            predictions = _of_covered(predictions, proposals)
        if not all(x.has(_CLS) for x in proposals):
            return losses(predictions, proposals)
        return weighted_roi_losses(predictor, predictions, proposals, settings)

    predictor.losses = weighted


def _of_covered(predictions: tuple[Tensor, Tensor], regions: list[Instances]):
    """Predictions whose logits teach background no class that was not looked for on its image."""
    scores, deltas = predictions
    classes, covered = (cat([x.get(k) for x in regions]) for k in ("gt_classes", _COVERED))
    objects = scores[:, :-1]  # the last logit, of background, has no loss
    objects = hide_background(objects, classes == objects.shape[1], covered)
    return cat([objects, scores[:, -1:]], dim=1), deltas


def weighted_roi_losses(
    predictor: FastRCNNOutputLayers, predictions, proposals: list[Instances], settings: LabelWeights
) -> dict[str, Tensor]:
    """``FastRCNNOutputLayers.losses`` with a factor for each region in either loss."""
    scores, deltas = predictions
    classes = cat([p.gt_classes for p in proposals])
    _log_classification_stats(scores, classes)
    cls_weights, box_weights = (cat([p.get(k) for p in proposals]) for k in (_CLS, _BOX))
    count, foreground = max(len(classes), 1), classes != predictor.num_classes
    cls_weights = settings.normalised(cls_weights, torch.ones_like(foreground), count)
    box_weights = settings.normalised(box_weights, foreground, count)
    if predictor.use_sigmoid_ce:
        one_hot = F.one_hot(classes, predictor.num_classes + 1)[:, :-1].to(scores.dtype)
        bce = F.binary_cross_entropy_with_logits(scores[:, :-1], one_hot, reduction="none")
        loss_cls = (bce * cls_weights[:, None]).sum() / count
    else:
        loss_cls = (cross_entropy(scores, classes, reduction="none") * cls_weights).sum() / count
    index = foreground.nonzero()[:, 0]
    if deltas.shape[1] == 4:
        chosen = deltas[index]
    else:
        chosen = deltas.view(-1, predictor.num_classes, 4)[index, classes[index]]
    regions = cat([p.proposal_boxes.tensor for p in proposals])
    targets = cat(
        [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
    )
    boxes = weighted_box_loss(predictor, regions[index], targets[index], chosen, box_weights[index])
    losses = {"loss_cls": loss_cls, "loss_box_reg": boxes / count}
    return {k: v * predictor.loss_weight.get(k, 1.0) for k, v in losses.items()}
