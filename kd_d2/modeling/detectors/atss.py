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
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.atss_head import ATSSHead
from kd_d2.modeling.detectors.atss_targets import centres_of, decode_deltas, match_anchors
from kd_d2.modeling.detectors.fcos_targets import (
    centerness_targets,
    distances_to_boxes,
    giou_loss_of_distances,
    iou_of_distances,
    pad_objects,
)
from kd_d2.modeling.detectors.one_per_cell import OnePerCellDetector, mean_over_gpus

_BRANCHES = ("iou", "centerness")


def add_atss_config(cfg: CN) -> None:
    """Add the node ``MODEL.ATSS``."""
    cfg.MODEL.ATSS = CN()
    # Feature levels of the head, from fine to coarse.
    cfg.MODEL.ATSS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of classes without background.
    cfg.MODEL.ATSS.NUM_CLASSES = 80
    # 3x3 convolutions in each of the two towers.
    cfg.MODEL.ATSS.NUM_CONVS = 4
    # Norm after each of them, as MODEL.FCOS.NORM. With one the convolutions have no biases.
    cfg.MODEL.ATSS.NORM = "GN"
    # Probability of every class at the first iteration; sets the bias of the classifier.
    cfg.MODEL.ATSS.PRIOR_PROB = 0.01
    # What the third output predicts, which weighs a detection's score: "iou" of the predicted box
    # with the object; or the "centerness" of the anchor in the object, as in the ATSS paper, which
    # then also weighs the box loss.
    cfg.MODEL.ATSS.BRANCH = "iou"
    # Side of the one square anchor of a cell, in strides of its level.
    cfg.MODEL.ATSS.ANCHOR_SCALE = 8.0
    # Where the anchors' centres are, in strides from the cells' upper left corners.
    cfg.MODEL.ATSS.ANCHOR_OFFSET = 0.0
    # Weights of (dx, dy, dw, dh) in the box output, as in RetinaNet: the inverse of its deviations.
    cfg.MODEL.ATSS.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # Candidates of an object on each level: the anchors whose centres are nearest to its own.
    cfg.MODEL.ATSS.TOPK = 9
    # Parameters of the focal loss.
    cfg.MODEL.ATSS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.ATSS.FOCAL_LOSS_GAMMA = 2.0
    # Factors of the GIoU loss and of the loss of the third output.
    cfg.MODEL.ATSS.BOX_LOSS_WEIGHT = 2.0
    cfg.MODEL.ATSS.BRANCH_LOSS_WEIGHT = 1.0
    # Inference: the best anchors of each level (by their best class), the least class probability
    # of a candidate (before the third output counts), and the IoU above which NMS drops the weaker
    # of two boxes.
    cfg.MODEL.ATSS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.ATSS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.ATSS.NMS_THRESH_TEST = 0.6


@META_ARCH_REGISTRY.register()
class ATSS(OnePerCellDetector):
    """Adaptive training sample selection (arXiv 1912.02424)."""

    @configurable
    def __init__(
        self,
        *,
        branch: str = "iou",
        anchor_scale: float = 8.0,
        anchor_offset: float = 0.0,
        bbox_reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0),
        topk: int = 9,
        box_loss_weight: float = 2.0,
        branch_loss_weight: float = 1.0,
        **common,
    ):
        """
        Args:
            common: arguments of :class:`OnePerCellDetector`; the head is an :class:`ATSSHead`, or
                returns logits, deltas and quality like it.

        The other arguments are explained at the config keys of :func:`add_atss_config`.

        Raises:
            ValueError: an unknown branch.
        """
        super().__init__(**common)
        if branch not in _BRANCHES:
            raise ValueError(f'MODEL.ATSS.BRANCH is {branch!r}: it must be "iou" or "centerness".')
        self.branch = branch
        strides = self.strides()
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[anchor_scale * s] for s in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=anchor_offset,
        )
        self.bbox_reg_weights = tuple(bbox_reg_weights)
        self.topk = topk
        self.box_loss_weight = box_loss_weight
        self.branch_loss_weight = branch_loss_weight

    @classmethod
    def from_config(cls, cfg):
        atss = cfg.MODEL.ATSS
        return {
            **cls.common_settings(cfg, atss, ATSSHead),
            "branch": atss.BRANCH,
            "anchor_scale": atss.ANCHOR_SCALE,
            "anchor_offset": atss.ANCHOR_OFFSET,
            "bbox_reg_weights": atss.BBOX_REG_WEIGHTS,
            "topk": atss.TOPK,
            "box_loss_weight": atss.BOX_LOSS_WEIGHT,
            "branch_loss_weight": atss.BRANCH_LOSS_WEIGHT,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Which object each anchor learns, for all objects of all images at once.

        Args:
            anchors: of each level.

        Returns:
            list[Tensor]: labels (R,) of each image; the background is ``num_classes``, and -1 an
                anchor outside the image that is ignored, see :meth:`valid_anchors`.
            list[Tensor]: boxes (R, 4) that the anchors learn; arbitrary for the others.
        """
        boxes, classes = pad_objects(gt_instances)
        valid = self.valid_anchors(anchors, [x.image_size for x in gt_instances])
        index, matched = match_anchors([a.tensor for a in anchors], valid, boxes, self.topk)
        labels, matched_boxes = self.labels_and_boxes(index, matched, boxes, classes)
        labels = labels.where(cat(valid, dim=1), -1)
        return list(labels), list(matched_boxes)

    def valid_anchors(
        self, anchors: list[Boxes], image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Which anchors an image would have in a batch of its own: the others see only padding.

        Args:
            anchors: of each level.
            image_sizes: height and width of each image, without padding.

        Returns:
            list[Tensor]: (N, R_l) of each level.
        """
        unit = max(self.backbone.size_divisibility, 1)
        padded = [[-(-side // unit) * unit for side in (w, h)] for h, w in image_sizes]
        limits = torch.tensor(padded)[:, None].to(self.device, non_blocking=True)  # (N, 1, 2)
        generator = self.anchor_generator
        return [
            (a.get_centers() - generator.offset * stride < limits).all(-1)
            for a, stride in zip(anchors, generator.strides, strict=True)
        ]

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_quality: list[Tensor],
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
        """
        logits, deltas, quality = (
            cat(x, dim=1).float() for x in (pred_logits, pred_deltas, pred_quality)
        )
        labels = torch.stack(gt_labels)  # (N, R)
        positive = (labels >= 0) & (labels != self.num_classes)

        squares = Boxes.cat(anchors).tensor  # (R, 4)
        points = centres_of(squares)
        targets = torch.stack(gt_boxes).float().where(positive[..., None], squares)
        targets = distances_to_boxes(points, targets)  # (N, R, 4)
        deltas = deltas.where(positive[..., None], 0.0)
        predicted = distances_to_boxes(
            points, decode_deltas(deltas, squares, self.bbox_reg_weights)
        )

        if self.branch == "iou":
            weights = positive.float()
            quality_targets = iou_of_distances(predicted.detach(), targets)
        else:
            weights = quality_targets = centerness_targets(targets) * positive
        count = positive.sum(1).clamp(min=1).sum()
        count, weight_sum = mean_over_gpus(torch.stack((count, weights.sum())))

        giou = (giou_loss_of_distances(predicted, targets) * weights).sum()
        giou = giou / (count if self.branch == "iou" else weight_sum)
        bce = F.binary_cross_entropy_with_logits(
            quality.squeeze(-1), quality_targets, reduction="none"
        )
        bce = bce.where(positive, 0.0).sum() / count
        return {
            "loss_cls": self.focal_loss(logits, labels) / count,
            "loss_box_reg": self.box_loss_weight * giou,
            f"loss_{self.branch}": self.branch_loss_weight * bce,
        }

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor], list[Tensor]],
    ) -> list[Instances]:
        """Detections of each image in network input coordinates; leaves ``predictions`` alone."""
        anchors = self.anchor_generator(features)
        logits, deltas, quality = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        # No detection in the padding, so that an image's do not depend on the rest of the batch.
        valid = self.valid_anchors(anchors, images.image_sizes)
        # list over levels of (anchors (R_l, 4), (N, R_l, K), (N, R_l, 4), (N, R_l))
        levels = [
            (
                a.tensor,
                x.float().sigmoid().where(v[..., None], 0.0),
                d.float(),
                q.float().sigmoid().squeeze(-1),
            )
            for a, v, x, d, q in zip(anchors, valid, logits, deltas, quality, strict=True)
        ]
        results = []
        for i, image_size in enumerate(images.image_sizes):
            candidates = [
                self._candidates(image_size, a, s[i], d[i], q[i]) for a, s, d, q in levels
            ]
            results.append(self.best_detections(image_size, candidates))
        return results

    def _candidates(
        self,
        image_size: tuple[int, int],
        anchors: Tensor,
        probabilities: Tensor,
        deltas: Tensor,
        quality: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (k, 4), scores (k,) and classes (k,) of the best candidates of a level of an image.

        Candidates are chosen by class probability alone; only their rank in NMS sees the quality.
        """
        num_anchors = min(self.test_topk_candidates, len(anchors))
        _, best = probabilities.amax(1).topk(num_anchors)
        row, classes = (probabilities[best] > self.test_score_thresh).nonzero(as_tuple=True)
        index = best[row]
        boxes = Boxes(decode_deltas(deltas[index], anchors[index], self.bbox_reg_weights))
        boxes.clip(image_size)
        return boxes.tensor, probabilities[index, classes] * quality[index], classes
