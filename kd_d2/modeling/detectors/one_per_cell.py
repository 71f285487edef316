"""What FCOS and ATSS share: one prediction a cell, of classes, a box, and a third number.

Shapes: N images, R anchors (or points) of all levels together, M boxes of an image, K classes.
"""

from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms, cat
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

from kd_d2.modeling.label_weights import LabelWeights

_FOCAL_LOSS = ("FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA")


def add_common_keys(node: CfgNode) -> None:
    """Add to the node of a detector the keys that all of these have."""
    # Feature levels of the head, from fine to coarse.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of classes without background.
    node.NUM_CLASSES = 80
    # 3x3 convolutions in each of the two towers.
    node.NUM_CONVS = 4
    # Norm after each of them: "GN" (32 groups), "BN" and "SyncBN" (statistics per level), "" (none)
    # or another name known to detectron2.layers.get_norm.
    node.NORM = "GN"
    # Probability of every class at the first iteration; sets the bias of the classifier.
    node.PRIOR_PROB = 0.01
    # Inference: the number of the best candidates of each level, the least class probability of a
    # candidate (before a third output counts), and the IoU above which NMS drops the weaker of two
    # boxes.
    node.TOPK_CANDIDATES_TEST = 1000
    node.SCORE_THRESH_TEST = 0.05
    node.NMS_THRESH_TEST = 0.6


class OnePerCellDetector(DenseDetector):
    """Subclasses set ``anchor_generator`` and have ``label_anchors`` and ``losses``.

    Those that assign by their predictions set ``assigns_by_predictions``, and their
    ``label_anchors`` has a third argument: what gives the predictions, decoded.
    """

    assigns_by_predictions = False
    # what labels of different weights count, see label_weights
    label_weights: LabelWeights | None = None

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            head: returns logits, boxes in an encoding of its own, and the third number; see
                :meth:`outputs_per_cell`.
            head_in_features: levels of the backbone that it reads, from fine to coarse.

        The other arguments are explained at the config keys of the detectors.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.num_classes = num_classes
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    @staticmethod
    def common_settings(cfg: CfgNode, node: CfgNode, head: type[nn.Module]) -> dict:
        """The arguments of this class, from a config.

        Args:
            node: the detector's own; it may lack the keys of a focal loss that it does not have.
            head: built as ``head(cfg, input_shape)``.
        """
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "head": head(cfg, [shapes[f] for f in node.IN_FEATURES]),
            "head_in_features": node.IN_FEATURES,
            "num_classes": node.NUM_CLASSES,
            **{key.lower(): node[key] for key in _FOCAL_LOSS if key in node},
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def strides(self) -> list[int]:
        """Of the levels that the head reads."""
        shapes = self.backbone.output_shape()
        return [shapes[f].stride for f in self.head_in_features]

    def strides_of(self, anchors: list[Boxes]) -> list[Tensor]:
        """The stride of each anchor (R_l,) of each level."""
        return [
            a.tensor.new_full((len(a),), stride)
            for a, stride in zip(anchors, self.strides(), strict=True)
        ]

    def outputs_per_cell(self) -> list[int]:
        """Channels of the head's outputs."""
        return [self.num_classes, 4, 1]

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], ...],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of a batch; ``predictions`` are the head's."""
        logits, boxes, *third = self._transpose_dense_predictions(
            predictions, self.outputs_per_cell()
        )
        anchors = self.anchor_generator(features)
        by = ()
        if self.assigns_by_predictions:  # not decoded where the labels are another network's
            by = (partial(self.decode_predictions, images, features, predictions),)
        *gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances, *by)
        if self.label_weights is None:
            return self.losses(anchors, logits, *gt_labels, boxes, gt_boxes, *third)
        gt_labels = self.leave_out(anchors, gt_labels, gt_instances)
        # of several answers the first is that of the class loss
        logits = self.label_weights.hide_uncovered(logits, gt_labels[0], gt_instances)
        weights = self.weights_of_labels(anchors, gt_labels, gt_boxes, gt_instances)
        args = anchors, logits, *gt_labels, boxes, gt_boxes, *third
        return self.losses(*args, **({} if weights is None else {"weights": weights}))

    def leave_out(
        self, anchors: list[Boxes], answers: list[list[Tensor]], gt: list[Instances]
    ) -> list[list[Tensor]]:
        """Each answer of :meth:`label_anchors` without background on what may be an object."""
        squares, settings = Boxes.cat(anchors).tensor, self.label_weights
        return [settings.leave_out(x, squares, self.num_classes, gt) for x in answers]

    def weights_of_labels(
        self,
        anchors: list[Boxes],
        answers: list[list[Tensor]],
        gt_boxes: list[Tensor],
        gt: list[Instances],
    ) -> tuple[Tensor, Tensor] | None:
        """Factors (N, R) of the losses of classes and of boxes; None if all count alike."""
        (labels,) = answers
        positive = self.positive(torch.stack(labels))
        return self.label_weights.of_anchors(labels, gt_boxes, positive, gt)

    def positive(self, labels: Tensor) -> Tensor:
        """Which anchors (N, R) learn an object, by their labels (N, R)."""
        return (labels >= 0) & (labels != self.num_classes)

    def labels_and_boxes(
        self, index: Tensor, matched: Tensor, boxes: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What each anchor learns.

        Args:
            index, matched: (N, R) the box of each anchor, and whether it has one.
            boxes, classes: (N, M, 4), (N, M) of the batch.

        Returns:
            labels (N, R), the background being ``num_classes``; boxes (N, R, 4), arbitrary for it.
        """
        labels = classes.gather(1, index).where(matched, self.num_classes)
        return labels, boxes.gather(1, index[..., None].expand(-1, -1, 4))

    def focal_loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum over the anchors that are not ignored.

        Args:
            logits: (N, R, K).
            labels: (N, R); the background is ``num_classes``, negative ones are ignored.
            weights: (N, R) factors of the anchors.
        """
        one_hot = labels[..., None] == torch.arange(self.num_classes, device=labels.device)
        focal = sigmoid_focal_loss_jit(
            logits, one_hot.float(), alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        return weighted(focal.sum(-1), weights).where(labels >= 0, 0.0).sum()

    def best_detections(
        self, image_size: tuple[int, int], candidates: list[tuple[Tensor, Tensor, Tensor]]
    ) -> Instances:
        """NMS within each class over the candidates of all levels of an image.

        Args:
            candidates: boxes (k, 4), scores (k,) and classes (k,) of each level.
        """
        boxes, scores, classes = (cat(x) for x in zip(*candidates, strict=True))
        keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        keep = keep[: self.max_detections_per_image]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )


def weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """Values times weights of the same shape, or the values if there are none."""
    return values if weights is None else values * weights


def mean_over_gpus(values: Tensor, least: float = 1.0) -> Tensor:
    """Mean over the processes, at least ``least``; stays on the device."""
    values = values.float()
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(values)
        values = values / world_size
    return values.clamp(min=least)
