"""GFL as a META_ARCH: the class score says how good the box is, and its sides are distributions.

Anchors and assignment are those of ATSS; of an anchor only the centre counts.

Shapes: N images, R anchors of all levels together, R_l of level l, K classes, B bins of a side.
"""

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes
from torch import Tensor

from kd_d2.modeling.detectors.atss_targets import centres_of
from kd_d2.modeling.detectors.fcos_targets import (
    boxes_around,
    distances_to_boxes,
    giou_loss_of_distances,
    iou_of_distances,
)
from kd_d2.modeling.detectors.gfl_head import GFLHead
from kd_d2.modeling.detectors.gfl_losses import (
    distribution_focal_loss,
    integral,
    quality_focal_loss,
)
from kd_d2.modeling.detectors.one_per_cell import mean_over_gpus, weighted
from kd_d2.modeling.detectors.one_square_anchor import OneSquareAnchorDetector, add_anchor_keys


def add_gfl_config(cfg: CN) -> None:
    """Add the node ``MODEL.GFL``."""
    node = cfg.MODEL.GFL = CN()
    add_anchor_keys(node)
    # The longest distance from an anchor's centre to a side of its box, in strides of its level;
    # each distance is a distribution over 0, 1, ..., REG_MAX.
    node.REG_MAX = 16
    # Exponent of the quality focal loss, beta in the paper.
    node.FOCAL_LOSS_GAMMA = 2.0
    # Factors of the GIoU loss and of the distribution focal loss.
    node.BOX_LOSS_WEIGHT = 2.0
    node.DFL_LOSS_WEIGHT = 0.25


@META_ARCH_REGISTRY.register()
class GFL(OneSquareAnchorDetector):
    """Generalized focal loss (arXiv 2006.04388)."""

    needs_points_inside = True

    @configurable
    def __init__(
        self,
        *,
        reg_max: int = 16,
        box_loss_weight: float = 2.0,
        dfl_loss_weight: float = 0.25,
        **common,
    ):
        """
        Args:
            common: arguments of :class:`OneSquareAnchorDetector`; the head is a :class:`GFLHead`,
                or returns logits of classes and of bins like it.

        The other arguments are explained at the config keys of :func:`add_gfl_config`.
        """
        super().__init__(**common)
        self.reg_max = reg_max
        self.box_loss_weight = box_loss_weight
        self.dfl_loss_weight = dfl_loss_weight

    @classmethod
    def from_config(cls, cfg):
        gfl = cfg.MODEL.GFL
        return {
            **cls.common_settings(cfg, gfl, GFLHead),
            "reg_max": gfl.REG_MAX,
            "box_loss_weight": gfl.BOX_LOSS_WEIGHT,
            "dfl_loss_weight": gfl.DFL_LOSS_WEIGHT,
        }

    def outputs_per_cell(self) -> list[int]:
        return [self.num_classes, 4 * (self.reg_max + 1)]

    def decode_boxes(self, encoded: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
        distances = integral(encoded.unflatten(-1, (4, -1))) * strides[..., None]
        return boxes_around(centres_of(anchors), distances)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_bins: list[Tensor],
        gt_boxes: list[Tensor],
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Quality focal loss, and the GIoU and the distribution focal loss of the positives.

        The first is divided by the number of positives, counting one for an image without any; the
        others are means weighted by the best class probability of an anchor. As in FCOS, everything
        is computed for all anchors and masked afterwards.

        Args:
            pred_logits: (N, R_l, K) of each level.
            pred_bins: (N, R_l, 4 * B) of each level.
            gt_labels, gt_boxes: as :meth:`label_anchors` returns them; negative labels are ignored.
            weights: (N, R) factors of the anchors in the losses of classes, and of boxes.
        """
        logits, bins = (cat(x, dim=1).float() for x in (pred_logits, pred_bins))
        labels = torch.stack(gt_labels)  # (N, R)
        positive = self.positive(labels)
        of_class, of_box = weights or (None, None)
        shares = logits.detach().sigmoid().amax(-1) * positive
        count = positive.sum(1).clamp(min=1).sum()
        count, weight_sum = mean_over_gpus(torch.stack((count, shares.sum())))

        # distances in strides (N, R, 4)
        strides = cat(self.strides_of(anchors))[:, None]
        points = centres_of(Boxes.cat(anchors).tensor) / strides
        targets = distances_to_boxes(points, torch.stack(gt_boxes).float() / strides)
        targets = targets.where(positive[..., None], 1.0)
        bins = bins.unflatten(-1, (4, -1)).where(positive[..., None, None], 0.0)  # (N, R, 4, B)
        predicted = integral(bins)

        quality = iou_of_distances(predicted.detach(), targets)
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        focal = quality_focal_loss(logits, quality[..., None] * one_hot, self.focal_loss_gamma)
        focal = weighted(focal.sum(-1), of_class).where(labels >= 0, 0.0).sum()
        shares = weighted(shares, of_box)
        giou = (giou_loss_of_distances(predicted, targets) * shares).sum()
        dfl = (distribution_focal_loss(bins, targets).mean(-1) * shares).sum()
        return {
            "loss_cls": focal / count,
            "loss_box_reg": self.box_loss_weight * giou / weight_sum,
            "loss_dfl": self.dfl_loss_weight * dfl / weight_sum,
        }
