"""FCOS as a META_ARCH: Detectron2 has the class, but neither a config nor per-level scales for it.

Settings of the cvpods implementation that LGD was published with: GroupNorm towers, centerness on
the box tower, per-level scales, centre sampling, GIoU.

Shapes: N images, R points of all levels together, K classes. Without anchors, one point per cell.
"""

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.fcos_head import FCOSHead
from kd_d2.modeling.detectors.fcos_targets import (
    centerness_targets,
    distances_to_boxes,
    giou_loss_of_distances,
    iou_loss_of_distances,
    level_ranges,
    match_points,
    pad_objects,
)
from kd_d2.modeling.detectors.one_per_cell import add_common_keys, mean_over_gpus, weighted
from kd_d2.modeling.detectors.one_point import OnePointDetector

_BOX_LOSSES = {"giou": giou_loss_of_distances, "iou": iou_loss_of_distances}


def add_fcos_config(cfg: CN) -> None:
    """Add the node ``MODEL.FCOS``."""
    node = cfg.MODEL.FCOS = CN()
    add_common_keys(node)
    # Predict centerness from the box tower (True) or from the class tower.
    node.CENTERNESS_ON_REG = True
    # Predict distances in units of the stride through a ReLU (True), or in pixels through exp.
    node.NORM_REG_TARGETS = True
    # A point learns a box only within this many strides of its centre; 0: anywhere in the box.
    node.CENTER_SAMPLING_RADIUS = 1.5
    # Largest distance in pixels from a point to a side of its box, for every level but the last,
    # which has no limit; it is the smallest distance for the next level. Empty: 8 times the level's
    # stride, i.e. 64, 128, 256, 512 for P3 to P7.
    node.SIZES_OF_INTEREST = []
    # Where the points are, in strides from the cells' upper left corners.
    node.POINT_OFFSET = 0.5
    # Loss of a box, weighted by its centerness: "giou" (1 - GIoU), or "iou" (-log IoU), as in the
    # first version of the FCOS paper and in PGD.
    node.BOX_LOSS = "giou"
    # The sum of centerness that the box loss is divided by is no less than this; 1e-6 in PGD.
    node.MIN_CENTERNESS_SUM = 1.0
    # Parameters of the focal loss.
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0
    # Inference: a detection's score is the "sqrt" of class probability times centerness, or the
    # "product" itself.
    node.SCORE = "sqrt"
    # The best candidates of each level are "pairs" of a point and a class, by the class's
    # probability; or all classes of the best "points", by the score of their best class.
    node.CANDIDATES_TEST = "pairs"


@META_ARCH_REGISTRY.register()
class FCOS(OnePointDetector):
    """Fully convolutional one-stage detector (arXiv 1904.01355, 2006.09214)."""

    @configurable
    def __init__(
        self,
        *,
        sizes_of_interest: list[float] = (),
        center_sampling_radius: float = 1.5,
        box_loss: str = "giou",
        min_centerness_sum: float = 1.0,
        **common,
    ):
        """
        Args:
            sizes_of_interest: one upper limit for every level but the last; empty: 8 strides.
            center_sampling_radius, box_loss, min_centerness_sum: see the config keys of
                :func:`add_fcos_config`.
            common: arguments of :class:`OnePointDetector`; the head is an :class:`FCOSHead`, or
                returns logits, distances and centerness like it.

        Raises:
            ValueError: limits whose number does not fit the levels, or that do not increase; an
                unknown loss.
        """
        super().__init__(**common)
        strides = self.strides()
        sizes = list(sizes_of_interest) or [8 * s for s in strides[:-1]]
        if len(sizes) != len(strides) - 1 or sizes != sorted(set(sizes)):
            raise ValueError(
                "MODEL.FCOS.SIZES_OF_INTEREST needs one increasing number for every level but the "
                f"last of {list(self.head_in_features)}, got {sizes}."
            )
        self.level_ranges = level_ranges(sizes)
        self.center_sampling_radius = center_sampling_radius
        if box_loss not in _BOX_LOSSES:
            raise ValueError(
                f"MODEL.FCOS.BOX_LOSS is {box_loss!r}: it must be one of {', '.join(_BOX_LOSSES)}."
            )
        self.min_centerness_sum = min_centerness_sum
        self.box_loss = _BOX_LOSSES[box_loss]

    @classmethod
    def from_config(cls, cfg):
        fcos = cfg.MODEL.FCOS
        return {
            **cls.common_settings(cfg, fcos, FCOSHead),
            "sizes_of_interest": fcos.SIZES_OF_INTEREST,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "point_offset": fcos.POINT_OFFSET,
            "box_loss": fcos.BOX_LOSS,
            "min_centerness_sum": fcos.MIN_CENTERNESS_SUM,
            "score": fcos.SCORE,
            "candidates_test": fcos.CANDIDATES_TEST,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Which object each point learns, for all objects of all images at once.

        Args:
            anchors: the squares of the points of each level.

        Returns:
            list[Tensor]: labels (R,) of each image; the background is ``num_classes``.
            list[Tensor]: boxes (R, 4) that the points learn; arbitrary for the background.
        """
        points, strides = Boxes.cat(anchors).get_centers(), cat(self.strides_of(anchors))
        ranges = cat([s.tensor.new_tensor(r).expand(len(s), 2) for s, r in self._levels(anchors)])

        boxes, classes = pad_objects(gt_instances)
        index, matched = match_points(points, strides, ranges, boxes, self.center_sampling_radius)
        labels, matched_boxes = self.labels_and_boxes(index, matched, boxes, classes)
        return list(labels), list(matched_boxes)

    def _levels(self, anchors: list[Boxes]):
        return zip(anchors, self.level_ranges, strict=True)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_distances: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Focal, box (weighted by centerness) and centerness loss, means over the positives.

        Everything is computed for all points and masked afterwards: indexing with the positives
        would make the host wait for the device, and drop parameters from the graph when there
        are none.

        Args:
            pred_logits: (N, R_l, K) of each level.
            pred_distances: (N, R_l, 4) of each level.
            pred_centerness: (N, R_l, 1) of each level.
            gt_labels, gt_boxes: as :meth:`label_anchors` returns them; negative labels are ignored.
            weights: (N, R) factors of the anchors in the losses of classes, and of boxes.
        """
        logits, distances, centerness = (
            cat(x, dim=1).float() for x in (pred_logits, pred_distances, pred_centerness)
        )
        labels = torch.stack(gt_labels)  # (N, R)
        positive = self.positive(labels)
        of_class, of_box = weights or (None, None)

        points = Boxes.cat(anchors).get_centers()
        targets = distances_to_boxes(points, torch.stack(gt_boxes).float())  # (N, R, 4)
        targets = targets.where(positive[..., None], 1.0)
        ctr_targets = centerness_targets(targets) * positive
        sums = mean_over_gpus(torch.stack((positive.sum(), ctr_targets.sum())), least=0)
        num_positive, ctr_sum = sums[0].clamp(min=1), sums[1].clamp(min=self.min_centerness_sum)

        box = self.box_loss(distances.where(positive[..., None], 1.0), targets)
        bce = F.binary_cross_entropy_with_logits(
            centerness.squeeze(-1), ctr_targets, reduction="none"
        )
        return {
            "loss_cls": self.focal_loss(logits, labels, of_class) / num_positive,
            "loss_box_reg": (weighted(box, of_box) * ctr_targets).sum() / ctr_sum,
            "loss_centerness": weighted(bce, of_box).where(positive, 0.0).sum() / num_positive,
        }
