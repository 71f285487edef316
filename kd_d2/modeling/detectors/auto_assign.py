"""AutoAssign as a META_ARCH: FCOS without an assignment, the locations weigh themselves.

Shapes: N images, R locations of all levels together, M boxes of an image, K classes. One location
for each cell, at its upper left corner.
"""

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from kd_d2.modeling.detectors.auto_assign_head import AutoAssignHead
from kd_d2.modeling.detectors.auto_assign_losses import (
    centre_loss,
    centre_prior,
    negative_loss,
    negative_weights,
    positive_loss,
)
from kd_d2.modeling.detectors.fcos_targets import (
    distances_to_boxes,
    giou_loss_of_distances,
    iou_of_distances,
    pad_objects,
)
from kd_d2.modeling.detectors.one_per_cell import add_common_keys, mean_over_gpus, weighted
from kd_d2.modeling.detectors.one_point import OnePointDetector


def add_auto_assign_config(cfg: CN) -> None:
    """Add the node ``MODEL.AUTOASSIGN``."""
    node = cfg.MODEL.AUTOASSIGN = CN()
    add_common_keys(node)
    node.PRIOR_PROB = 0.02  # as in its paper
    # How much a wrong box lowers the confidence of its location, which is class probability *
    # objectness * exp(-this * (1 - GIoU)).
    node.BOX_LOSS_WEIGHT = 5.0
    # Factors of the three losses.
    node.POS_LOSS_WEIGHT = 0.25
    node.NEG_LOSS_WEIGHT = 0.75
    node.CENTER_LOSS_WEIGHT = 0.75


@META_ARCH_REGISTRY.register()
class AutoAssign(OnePointDetector):
    """Differentiable label assignment (arXiv 2007.03496).

    There is no ``label_anchors``: who learns which object is weighed inside the losses.
    """

    @configurable
    def __init__(
        self,
        *,
        box_loss_weight: float = 5.0,
        pos_loss_weight: float = 0.25,
        neg_loss_weight: float = 0.75,
        center_loss_weight: float = 0.75,
        **common,
    ):
        """
        Args:
            common: arguments of :class:`OnePointDetector`; the head is an
                :class:`AutoAssignHead`, or returns logits, distances and objectness like it, and
                has its ``center_prior``.

        The other arguments are explained at the config keys of :func:`add_auto_assign_config`.
        """
        super().__init__(point_offset=0.0, score="product", candidates_test="points", **common)
        self.box_loss_weight = box_loss_weight
        self.pos_loss_weight = pos_loss_weight
        self.neg_loss_weight = neg_loss_weight
        self.center_loss_weight = center_loss_weight

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.AUTOASSIGN
        return {
            **cls.common_settings(cfg, node, AutoAssignHead),
            "box_loss_weight": node.BOX_LOSS_WEIGHT,
            "pos_loss_weight": node.POS_LOSS_WEIGHT,
            "neg_loss_weight": node.NEG_LOSS_WEIGHT,
            "center_loss_weight": node.CENTER_LOSS_WEIGHT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The losses of a batch; ``predictions`` are the head's."""
        logits, distances, objectness = (
            cat([x.flatten(2) for x in levels], dim=2).float() for levels in predictions
        )
        probabilities = logits.sigmoid() * objectness.sigmoid()
        distances = distances.transpose(1, 2)
        points, strides = self.locations(features)
        args = points, strides, probabilities, distances, gt_instances
        if self.label_weights is None:
            return self.losses(*args)
        squares = Boxes.cat(self.anchor_generator(features)).tensor
        covered = self.label_weights.covered(gt_instances, self.num_classes)
        return self.losses(*args, *self.label_weights.of_objects(squares, gt_instances), covered)

    def losses(
        self,
        points: Tensor,
        strides: Tensor,
        probabilities: Tensor,
        distances: Tensor,
        gt_instances: list[Instances],
        weights: tuple[Tensor, Tensor] | None = None,
        counted: Tensor | None = None,
        covered: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Positive, negative and centre loss.

        Everything is computed for all pairs of a location and an object of its image and masked
        afterwards, as in FCOS.

        Args:
            points: (R, 2) x, y.
            strides: (R,).
            probabilities: (N, K, R) of a class and of an object.
            distances: (N, R, 4) in pixels.
            weights: (N, M) factors of the objects in the positive loss, and of their boxes' GIoU
                losses in it. Where that is 0, a location's confidence is the classification's
                alone, and no box learns from the object.
            counted: (N, R), where the negative loss counts.
            covered: (N, K), the classes that were looked for on each image.
        """
        of_object, of_box = weights or (None, None)
        boxes, classes = pad_objects(gt_instances)
        boxes = boxes.float()
        counts = torch.tensor([len(x) for x in gt_instances])
        counts = counts.to(points.device, non_blocking=True)
        real = torch.arange(boxes.shape[1], device=points.device) < counts[:, None]  # (N, M)

        targets = distances_to_boxes(points, boxes[:, :, None])  # (N, M, R, 4)
        inside = targets.amin(-1) > 0
        giou_losses = giou_loss_of_distances(distances[:, None], targets)
        if of_box is not None:
            giou_losses = giou_losses * of_box[..., None]
        iou = iou_of_distances(distances.detach()[:, None], targets).amax(1)

        mean, sigma = self.head.center_prior.mean, self.head.center_prior.sigma
        prior = centre_prior(points, strides, boxes, mean[classes], sigma[classes], inside)
        confidence = probabilities.gather(1, classes[..., None].expand_as(inside))
        confidence = confidence * torch.exp(-self.box_loss_weight * giou_losses)
        shares = negative_weights(iou, inside, classes, self.num_classes)
        if covered is not None:
            # a location learns an object as far as it is no background of the object's class
            learns = 1 - shares.amin(1, keepdim=True)
            shares = shares.where(covered[..., None], shares * learns)
        if counted is not None:
            shares = shares * counted[:, None]

        num_objects, prior_sum = mean_over_gpus(torch.stack((counts.sum(), prior.detach().sum())))
        positive = weighted(positive_loss(confidence, prior), of_object)
        positive = positive.where(real, 0.0).sum() / num_objects
        negative = negative_loss(probabilities, shares) / prior_sum
        return {
            "loss_pos": self.pos_loss_weight * positive,
            "loss_neg": self.neg_loss_weight * negative,
            "loss_center": self.center_loss_weight * centre_loss(prior, inside, counts),
        }
