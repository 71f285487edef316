"""ATSS as a META_ARCH: one square anchor per cell, positives by the statistics of each object.

Two detectors in one, by ``MODEL.ATSS.BRANCH``: the original predicts the centerness of each box,
the later variant (of DDOD and PGD) its IoU.

Shapes: N images, R anchors of all levels together, R_l of level l, K classes.
"""

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.atss_head import ATSSHead
from kd_d2.modeling.detectors.atss_targets import centres_of, decode_deltas, nearest_decodable
from kd_d2.modeling.detectors.fcos_targets import (
    centerness_targets,
    distances_to_boxes,
    giou_loss_of_distances,
    iou_of_distances,
)
from kd_d2.modeling.detectors.one_per_cell import mean_over_gpus, weighted
from kd_d2.modeling.detectors.one_square_anchor import (
    OneSquareAnchorDetector,
    add_anchor_keys,
    add_delta_keys,
)

_BRANCHES = ("iou", "centerness")


def add_atss_config(cfg: CN) -> None:
    """Add the node ``MODEL.ATSS``."""
    node = cfg.MODEL.ATSS = CN()
    add_anchor_keys(node)
    add_delta_keys(node)
    # What the third output predicts, which weighs a detection's score: "iou" of the predicted box
    # with the object; or the "centerness" of the anchor in the object, as in the ATSS paper, which
    # then also weighs the box loss.
    node.BRANCH = "iou"
    # Factors of the GIoU loss and of the loss of the third output.
    node.BOX_LOSS_WEIGHT = 2.0
    node.BRANCH_LOSS_WEIGHT = 1.0


@META_ARCH_REGISTRY.register()
class ATSS(OneSquareAnchorDetector):
    """Adaptive training sample selection (arXiv 1912.02424)."""

    @configurable
    def __init__(
        self,
        *,
        branch: str = "iou",
        bbox_reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0),
        box_loss_weight: float = 2.0,
        branch_loss_weight: float = 1.0,
        **common,
    ):
        """
        Args:
            common: arguments of :class:`OneSquareAnchorDetector`; the head is an
                :class:`ATSSHead`, or returns logits, deltas and quality like it.

        The other arguments are explained at the config keys of :func:`add_atss_config`.

        Raises:
            ValueError: an unknown branch.
        """
        super().__init__(**common)
        if branch not in _BRANCHES:
            raise ValueError(f'MODEL.ATSS.BRANCH is {branch!r}: it must be "iou" or "centerness".')
        self.branch = branch
        self.bbox_reg_weights = tuple(bbox_reg_weights)
        self.box_loss_weight = box_loss_weight
        self.branch_loss_weight = branch_loss_weight

    @classmethod
    def from_config(cls, cfg):
        atss = cfg.MODEL.ATSS
        return {
            **cls.common_settings(cfg, atss, ATSSHead),
            "branch": atss.BRANCH,
            "bbox_reg_weights": atss.BBOX_REG_WEIGHTS,
            "box_loss_weight": atss.BOX_LOSS_WEIGHT,
            "branch_loss_weight": atss.BRANCH_LOSS_WEIGHT,
        }

    def decode_boxes(self, encoded: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
        return decode_deltas(encoded, anchors, self.bbox_reg_weights)

    def box_distances(
        self,
        anchors: list[Boxes],
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        positive: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predicted and true boxes (N, R, 4), as distances from the anchors' centres.

        Args:
            positive: (N, R), which anchors have a true box. For the others both are the anchor's.
        """
        squares = Boxes.cat(anchors).tensor  # (R, 4)
        points = centres_of(squares)
        deltas = cat(pred_deltas, dim=1).float().where(positive[..., None], 0.0)
        predicted = decode_deltas(deltas, squares, self.bbox_reg_weights)
        targets = torch.stack(gt_boxes).float().where(positive[..., None], squares)
        targets = nearest_decodable(targets, squares)
        return distances_to_boxes(points, predicted), distances_to_boxes(points, targets)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_quality: list[Tensor],
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU loss and the loss of the third output.

        All are divided by the number of positives, counting one for an image without any. With the
        centerness branch, the GIoU loss is a mean weighted by centerness instead. As in FCOS,
        everything is computed for all anchors and masked afterwards.

        Args:
            pred_logits: (N, R_l, K) of each level.
            pred_deltas: (N, R_l, 4) of each level.
            pred_quality: (N, R_l, 1) of each level.
            gt_labels, gt_boxes: as :meth:`label_anchors` returns them; negative labels are ignored.
            weights: (N, R) factors of the anchors in the losses of classes, and of boxes.
        """
        logits, quality = (cat(x, dim=1).float() for x in (pred_logits, pred_quality))
        labels = torch.stack(gt_labels)  # (N, R)
        positive = self.positive(labels)
        of_class, of_box = weights or (None, None)
        predicted, targets = self.box_distances(anchors, pred_deltas, gt_boxes, positive)

        if self.branch == "iou":
            shares = positive.float()
            quality_targets = iou_of_distances(predicted.detach(), targets)
        else:
            shares = quality_targets = centerness_targets(targets) * positive
        count = positive.sum(1).clamp(min=1).sum()
        count, weight_sum = mean_over_gpus(torch.stack((count, shares.sum())))

        giou = weighted(giou_loss_of_distances(predicted, targets), of_box)
        giou = (giou * shares).sum()
        giou = giou / (count if self.branch == "iou" else weight_sum)
        bce = F.binary_cross_entropy_with_logits(
            quality.squeeze(-1), quality_targets, reduction="none"
        )
        bce = weighted(bce, of_box).where(positive, 0.0).sum() / count
        return {
            "loss_cls": self.focal_loss(logits, labels, of_class) / count,
            "loss_box_reg": self.box_loss_weight * giou,
            f"loss_{self.branch}": self.branch_loss_weight * bce,
        }
