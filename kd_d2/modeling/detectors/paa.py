"""PAA as a META_ARCH: ATSS whose predictions decide, by their costs, who learns what.

Shapes: N images, R anchors of all levels together, R_l of level l, K classes, P pre-assigned
anchors of the batch.
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
from kd_d2.modeling.detectors.atss_targets import decode_deltas
from kd_d2.modeling.detectors.fcos_targets import (
    distances_from_origin,
    giou_loss_of_distances,
    iou_of_distances,
    pad_objects,
)
from kd_d2.modeling.detectors.one_per_cell import weighted
from kd_d2.modeling.detectors.one_square_anchor import (
    OneSquareAnchorDetector,
    add_anchor_keys,
    add_delta_keys,
)
from kd_d2.modeling.detectors.paa_head import PAAHead
from kd_d2.modeling.detectors.paa_targets import (
    PreAssignment,
    anchor_costs,
    preassign,
    select_positives,
)
from kd_d2.modeling.detectors.score_voting import vote_boxes
from kd_d2.modeling.scalars import log_scalars

_LEAST_IOU_WEIGHT = 1e-12
_LEAST_IOU_SUM = 1e-6


def add_paa_config(cfg: CN) -> None:
    """Add the node ``MODEL.PAA``."""
    node = cfg.MODEL.PAA = CN()
    add_anchor_keys(node)
    add_delta_keys(node)
    # Factors of the GIoU loss, in the costs, too, and of the loss of the IoU output.
    node.BOX_LOSS_WEIGHT = 1.3
    node.IOU_LOSS_WEIGHT = 0.5
    # What the GIoU loss of a positive counts: "iou", by the IoU of its box, as in PAA; "none", all
    # the same, as in LAD and CoLAD; "auto": "none" if a teacher or a peer has a say in who learns
    # what, else "iou".
    node.BOX_LOSS_WEIGHTING = "auto"
    # An anchor may learn the object with which it has its largest IoU, if that is at least this.
    node.IOU_THRESHOLD = 0.1
    # Which candidates become positive: "filtered", members of the cheap Gaussian up to its peak; or
    # "prefix", all of less cost than the peak, as in PAA's first release.
    node.SPLIT = "filtered"
    # An object's only candidate: "drop" it, or "keep" it as a positive.
    node.SINGLE_CANDIDATE = "drop"
    # Stop after so many steps in a row with costs that are not finite, which count for nothing.
    node.MAX_NON_FINITE_STEPS = 10
    # Predict the IoU of the box, too. Without, scores are class probabilities alone.
    node.IOU_BRANCH = True
    # An objectness that nobody labels, of the CoLAD paper: "none", "cop" or "iop".
    node.OBJECTNESS = "none"
    # Inference: move each detection to the weighted mean of the candidates around it. (In this
    # detector SCORE_THRESH_TEST is of the root of class probability times IoU.)
    node.SCORE_VOTING = True


@META_ARCH_REGISTRY.register()
class PAA(OneSquareAnchorDetector):
    """Probabilistic anchor assignment (arXiv 2007.08103).

    The assignment has three parts, so that two networks can share one (LAD, CoLAD):
    :meth:`preassign` looks at anchors and objects alone, :meth:`costs` at predictions,
    :meth:`select` at the costs, whoever's they are.
    """

    assigns_by_predictions = True

    @configurable
    def __init__(
        self,
        *,
        bbox_reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0),
        box_loss_weight: float = 1.3,
        iou_loss_weight: float = 0.5,
        box_loss_weighting: str = "iou",
        iou_threshold: float = 0.1,
        split: str = "filtered",
        single_candidate: str = "drop",
        max_non_finite_steps: int = 10,
        score_voting: bool = True,
        **common,
    ):
        """
        Args:
            box_loss_weighting: "iou" or "none".
            common: arguments of :class:`OneSquareAnchorDetector`; the head is a :class:`PAAHead`,
                or returns logits, deltas and perhaps IoU logits like it.

        The other arguments are explained at the config keys of :func:`add_paa_config`.
        """
        super().__init__(**common)
        self.bbox_reg_weights = tuple(bbox_reg_weights)
        self.box_loss_weight = box_loss_weight
        self.iou_loss_weight = iou_loss_weight
        self.box_loss_weighting = box_loss_weighting
        self.iou_threshold = iou_threshold
        self.split = split
        self.single_candidate = single_candidate
        self.max_non_finite_steps = max_non_finite_steps
        self.score_voting = score_voting
        self.has_iou_branch = getattr(self.head, "iou", None) is not None
        self._non_finite_steps = 0

    @classmethod
    def from_config(cls, cfg):
        paa = cfg.MODEL.PAA
        return {
            **cls.common_settings(cfg, paa, PAAHead),
            "bbox_reg_weights": paa.BBOX_REG_WEIGHTS,
            "box_loss_weight": paa.BOX_LOSS_WEIGHT,
            "iou_loss_weight": paa.IOU_LOSS_WEIGHT,
            "box_loss_weighting": "none" if paa.BOX_LOSS_WEIGHTING == "none" else "iou",
            "iou_threshold": paa.IOU_THRESHOLD,
            "split": paa.SPLIT,
            "single_candidate": paa.SINGLE_CANDIDATE,
            "max_non_finite_steps": paa.MAX_NON_FINITE_STEPS,
            "score_voting": paa.SCORE_VOTING,
        }

    def outputs_per_cell(self) -> list[int]:
        return [self.num_classes, 4] + [1] * self.has_iou_branch

    def decode_boxes(self, encoded: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
        return decode_deltas(encoded, anchors, self.bbox_reg_weights)

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        decoded: DensePredictions | Callable[[], DensePredictions],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Which object each anchor learns, for all objects of all images at once.

        Args:
            anchors: of each level.
            decoded: predictions of this detector, or what gives them.

        Returns:
            list[Tensor]: labels (R,) of each image; the background is ``num_classes``, and -1 an
                anchor outside the image that is ignored, see :meth:`valid_anchors`.
            list[Tensor]: boxes (R, 4) that the anchors learn; arbitrary for the others.

        Raises:
            FloatingPointError: predictions were not finite for too many steps.
        """
        pre = self.preassign(anchors, gt_instances)
        return self.select(pre, self.costs(pre, decoded() if callable(decoded) else decoded))

    def preassign(self, anchors: list[Boxes], gt_instances: list[Instances]) -> PreAssignment:
        """The anchors that may become positive; looks at no prediction."""
        valid = cat(self.valid_anchors(anchors, [x.image_size for x in gt_instances]), dim=1)
        squares = [a.tensor for a in anchors]
        return preassign(squares, valid, *pad_objects(gt_instances), self.iou_threshold)

    def costs(self, pre: PreAssignment, decoded: DensePredictions) -> Tensor:
        """How badly this detector predicts (P,) the objects of the pre-assigned anchors."""
        return anchor_costs(
            decoded.logits[pre.image, pre.anchor],
            decoded.boxes[pre.image, pre.anchor],
            pre.classes,
            pre.boxes,
            self.focal_loss_alpha,
            self.focal_loss_gamma,
            self.box_loss_weight,
        )

    @torch.no_grad()
    def select(self, pre: PreAssignment, costs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The assignment by costs (P,) of this or of other detectors; as :meth:`label_anchors`.

        Raises:
            FloatingPointError: costs were not finite for too many steps.
        """
        positive = select_positives(costs, pre, self.topk, self.split, self.single_candidate)
        self._watch(costs, positive, pre)
        labels = torch.where(pre.valid, self.num_classes, -1)
        classes = pre.classes.where(positive, self.num_classes)
        labels = labels.index_put((pre.image, pre.anchor), classes)
        boxes = pre.boxes.new_zeros(*labels.shape, 4)
        boxes = boxes.index_put((pre.image, pre.anchor), pre.boxes)
        return list(labels), list(boxes)

    def _watch(self, costs: Tensor, positive: Tensor, pre: PreAssignment) -> None:
        """Logs the positives of an object, and counts costs that are not finite."""
        if not len(costs):
            return
        seen = torch.zeros(pre.num_objects, dtype=torch.bool, device=costs.device)
        seen.index_fill_(0, pre.object, True)
        counts = torch.stack(((~costs.isfinite()).sum(), positive.sum(), seen.sum()))
        bad, chosen, objects = counts.tolist()
        log_scalars("paa", {"positives_per_object": chosen / objects, "non_finite_costs": bad})
        self._non_finite_steps = self._non_finite_steps + 1 if bad else 0
        if self._non_finite_steps >= self.max_non_finite_steps:
            raise FloatingPointError(
                f"{bad} of {len(costs)} costs of PAA's anchors are not finite, in "
                f"{self._non_finite_steps} steps in a row: the network that predicts them has "
                "diverged; lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or check a "
                "teacher's weights (MODEL.KD.TEACHER.WEIGHTS)."
            )

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_quality: list[Tensor] | None = None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Focal loss, GIoU loss and the loss of the IoU output.

        The first is divided by the number of positives of this process, but at least by N; the
        GIoU loss is a mean, weighted by the IoU of the predicted boxes or not at all; the last is
        a mean of the positives. Everything is computed for all anchors and masked afterwards.

        Args:
            pred_logits: (N, R_l, K) of each level.
            pred_deltas: (N, R_l, 4) of each level.
            gt_labels, gt_boxes: as :meth:`label_anchors` returns them; negative labels are ignored.
            pred_quality: (N, R_l, 1) of each level; None without an IoU branch.
            weights: (N, R) factors of the anchors in the losses of classes, and of boxes.
        """
        labels = torch.stack(gt_labels)  # (N, R)
        positive = self.positive(labels)
        of_class, of_box = weights or (None, None)
        count = positive.sum()
        squares = Boxes.cat(anchors).tensor
        deltas = cat(pred_deltas, dim=1).float().where(positive[..., None], 0.0)
        targets = torch.stack(gt_boxes).float().where(positive[..., None], squares)
        predicted = decode_deltas(deltas, squares, self.bbox_reg_weights)
        predicted, targets = (distances_from_origin(x) for x in (predicted, targets))
        iou = iou_of_distances(predicted.detach(), targets)
        giou = weighted(giou_loss_of_distances(predicted, targets), of_box)
        if self.box_loss_weighting == "iou" and self.has_iou_branch:
            shares = iou.clamp(min=_LEAST_IOU_WEIGHT).where(positive, 0.0)
            giou = (giou * shares).sum() / shares.sum().clamp(min=_LEAST_IOU_SUM)
        else:
            giou = giou.where(positive, 0.0).sum() / count.clamp(min=1)
        focal = self.focal_loss(cat(pred_logits, dim=1).float(), labels, of_class)
        losses = {
            "loss_cls": focal / count.clamp(min=len(labels)),
            "loss_box_reg": self.box_loss_weight * giou,
        }
        if self.has_iou_branch:
            bce = F.binary_cross_entropy_with_logits(
                cat(pred_quality, dim=1).float().squeeze(-1), iou, reduction="none"
            )
            bce = weighted(bce, of_box).where(positive, 0.0).sum() / count.clamp(min=1)
            losses["loss_iou"] = self.iou_loss_weight * bce
        return losses

    def choosing_scores(self, probabilities: Tensor, quality: Tensor | None) -> tuple[Tensor, None]:
        """It is the final score that chooses: sqrt(probability * IoU)."""
        if quality is not None:
            probabilities = (probabilities * quality.float().sigmoid()).sqrt()
        return probabilities, None

    def best_detections(
        self, image_size: tuple[int, int], candidates: list[tuple[Tensor, Tensor, Tensor]]
    ) -> Instances:
        """NMS within each class over the candidates of all levels; then score voting."""
        detections = super().best_detections(image_size, candidates)
        if self.score_voting and len(detections):
            of_all = (cat(x) for x in zip(*candidates, strict=True))
            boxes = detections.pred_boxes.tensor
            detections.pred_boxes.tensor = vote_boxes(boxes, detections.pred_classes, *of_all)
        return detections
