"""DDOD as a META_ARCH: ATSS whose predictions decide who learns what, apart for classes and boxes.

Shapes: N images, R anchors of all levels together, R_l of level l, K classes, L levels.
"""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.detectors.atss import ATSS
from kd_d2.modeling.detectors.atss_targets import centres_of
from kd_d2.modeling.detectors.ddod_head import DDODHead
from kd_d2.modeling.detectors.ddod_targets import level_weights, match_by_quality
from kd_d2.modeling.detectors.fcos_targets import (
    giou_loss_of_distances,
    iou_of_distances,
    pad_objects,
)
from kd_d2.modeling.detectors.one_per_cell import mean_over_gpus, weighted
from kd_d2.modeling.detectors.one_square_anchor import add_anchor_keys, add_delta_keys
from kd_d2.modeling.quality import probability_and_iou, quality_score


def add_ddod_config(cfg: CN) -> None:
    """Add the node ``MODEL.DDOD``."""
    node = cfg.MODEL.DDOD = CN()
    add_anchor_keys(node)
    add_delta_keys(node)
    # xi of those that learn the object's class, and of those that learn its box and their IoU.
    node.CLS_EXPONENT = 0.8
    node.BOX_EXPONENT = 0.6
    # Factors of the GIoU loss and of the loss of the IoU output.
    node.BOX_LOSS_WEIGHT = 2.0
    node.IOU_LOSS_WEIGHT = 1.0


@META_ARCH_REGISTRY.register()
class DDOD(ATSS):
    """Disentangled dense object detector (arXiv 2107.02963)."""

    # What PGD's teachers decide for their students.
    assigns_by_predictions = True
    separate_box_labels = True

    @configurable
    def __init__(
        self,
        *,
        cls_exponent: float = 0.8,
        box_exponent: float = 0.6,
        iou_loss_weight: float = 1.0,
        **common,
    ):
        """
        Args:
            common: arguments of :class:`ATSS` without those of the third output; the head is a
                :class:`DDODHead`, or returns logits, deltas and quality like it.

        The other arguments are explained at the config keys of :func:`add_ddod_config`.
        """
        super().__init__(branch="iou", branch_loss_weight=iou_loss_weight, **common)
        self.cls_exponent = cls_exponent
        self.box_exponent = box_exponent
        # Positives of each level since the start of training, of this process. PGD's release
        # forgets them in its checkpoints, so that a resumed training weighs its levels anew.
        for name in ("cls_positives", "box_positives"):
            self.register_buffer(name, torch.zeros(len(self.head_in_features), dtype=torch.long))

    def start_run(self) -> None:
        """Counts from 0; see ``DistillationTrainer.resume_or_load``."""
        self.cls_positives.zero_()
        self.box_positives.zero_()

    @classmethod
    def from_config(cls, cfg):
        ddod = cfg.MODEL.DDOD
        return {
            **cls.common_settings(cfg, ddod, DDODHead),
            "bbox_reg_weights": ddod.BBOX_REG_WEIGHTS,
            "cls_exponent": ddod.CLS_EXPONENT,
            "box_exponent": ddod.BOX_EXPONENT,
            "box_loss_weight": ddod.BOX_LOSS_WEIGHT,
            "iou_loss_weight": ddod.IOU_LOSS_WEIGHT,
        }

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        decoded: DensePredictions | Callable[[], DensePredictions],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Which object each anchor learns: one answer for the class loss, one for the others.

        Args:
            anchors: of each level.
            decoded: predictions of this detector, or what gives them.

        Returns:
            list[Tensor]: labels (R,) of each image for the class loss; the background is
                ``num_classes``, and -1 an anchor outside the image that is ignored, see
                :meth:`valid_anchors`.
            list[Tensor]: the same for the losses of boxes and of their IoU.
            list[Tensor]: boxes (R, 4) that the anchors learn; arbitrary for the others.
        """
        decoded = decoded() if callable(decoded) else decoded
        boxes, classes = pad_objects(gt_instances)
        valid = cat(self.valid_anchors(anchors, [x.image_size for x in gt_instances]), dim=1)
        centres = centres_of(Boxes.cat(anchors).tensor)
        fit = probability_and_iou(decoded.logits, decoded.boxes, boxes, classes)

        def labels_and_boxes(exponent: float) -> tuple[Tensor, Tensor]:
            quality = quality_score(*fit, exponent)
            matches = match_by_quality(centres, valid, quality, boxes, self.topk)
            labels, matched_boxes = self.labels_and_boxes(*matches, boxes, classes)
            return labels.where(valid, -1), matched_boxes

        cls_labels, _ = labels_and_boxes(self.cls_exponent)
        box_labels, matched_boxes = labels_and_boxes(self.box_exponent)
        return list(cls_labels), list(box_labels), list(matched_boxes)

    def weights_of_labels(self, anchors, answers, gt_boxes, gt):
        """As of every detector; whose class an anchor learns is only known for its box, though.

        So of the objects of its class, that counts with which the anchor has the largest IoU.
        """
        cls_labels, box_labels = answers
        settings, squares = self.label_weights, Boxes.cat(anchors).tensor
        cls_positive, positive = (self.positive(torch.stack(x)) for x in answers)
        pair = settings.of_anchors(box_labels, gt_boxes, positive, gt)
        if pair is None:
            return None
        return settings.of_nearest(squares, cls_labels, cls_positive, gt), pair[1]

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        cls_labels: list[Tensor],
        box_labels: list[Tensor],
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_quality: list[Tensor],
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Focal loss of one assignment, GIoU loss and the loss of the IoU output of the other.

        Each is divided by the number of positives of its own assignment, counting one for an image
        without any. A level weighs the more, the fewer positives it has had so far, this batch
        included. As in FCOS, everything is computed for all anchors and masked afterwards.

        Args:
            pred_logits: (N, R_l, K) of each level.
            pred_deltas: (N, R_l, 4) of each level.
            pred_quality: (N, R_l, 1) of each level.
            cls_labels, box_labels, gt_boxes: as :meth:`label_anchors` returns them; negative labels
                are ignored.
            weights: (N, R) factors of the anchors in the losses of classes, and of boxes.
        """
        of_class, of_box = weights or (None, None)
        cls_labels, box_labels = torch.stack(cls_labels), torch.stack(box_labels)  # (N, R)
        cls_positive, positive = (self.positive(x) for x in (cls_labels, box_labels))
        counts = [x.sum(1).clamp(min=1).sum() for x in (cls_positive, positive)]
        cls_count, count = mean_over_gpus(torch.stack(counts))

        sizes = [len(a) for a in anchors]
        of_levels = self._weights_of_levels(self.cls_positives, cls_positive, sizes)
        by_level = [None] * len(sizes) if of_class is None else of_class.split(sizes, dim=1)
        focal = sum(
            weight * self.focal_loss(x.float(), labels, factors)
            for weight, x, labels, factors in zip(
                of_levels, pred_logits, cls_labels.split(sizes, dim=1), by_level, strict=True
            )
        )

        of_levels = self._weights_of_levels(self.box_positives, positive, sizes)
        shares = cat([w.expand(size) for w, size in zip(of_levels, sizes, strict=True)])  # (R,)
        shares = weighted(shares, of_box)
        predicted, targets = self.box_distances(anchors, pred_deltas, gt_boxes, positive)
        giou = giou_loss_of_distances(predicted, targets)
        bce = F.binary_cross_entropy_with_logits(
            cat(pred_quality, dim=1).float().squeeze(-1),
            iou_of_distances(predicted.detach(), targets),
            reduction="none",
        )
        giou, bce = ((shares * x).where(positive, 0.0).sum() / count for x in (giou, bce))
        return {
            "loss_cls": focal / cls_count,
            "loss_box_reg": self.box_loss_weight * giou,
            "loss_iou": self.branch_loss_weight * bce,
        }

    def _weights_of_levels(self, counts: Tensor, positive: Tensor, sizes: list[int]) -> Tensor:
        """Factors (L,) of the levels; in training, adds the positives of this batch before.

        Args:
            counts: (L,), changed in place.
            positive: (N, R), R being the sum of ``sizes``.
        """
        if self.training:
            counts += torch.stack([x.sum() for x in positive.split(sizes, dim=1)])
        return level_weights(counts)
