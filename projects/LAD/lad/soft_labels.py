"""Soft labels: the student is to predict what the teacher predicts (LAD, arXiv 2108.10520).

Shapes: N images, A locations of all levels together, K classes.
"""

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.fcos_targets import (
    distances_from_origin,
    giou_loss_of_distances,
    pad_objects,
)
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.locations import LogitImitation
from kd_d2.modeling.quality import pairwise_iou
from kd_d2.modeling.views import Stage, ViewRequest

_LEAST_DIFFERENCE = 1e-6
_LEAST_WEIGHT = 1e-12
# Pairs of a location and an object that are looked at in one go: 128 MiB of float32.
_MOST_PAIRS = 2**25


def focal_kl(student: Tensor, teacher: Tensor, gamma: float = 0.5) -> Tensor:
    """Kullback-Leibler divergence of two sigmoids, more where they differ more.

    ``((q - p)^2 + 1e-6)^(gamma / 2) (q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)))``, p and q being
    the sigmoids of student and teacher. Gradients pass through the first factor, too.

    Args:
        student, teacher: logits (...), any floating dtype; the teacher's are constants.

    Returns:
        (...), float32.

    >>> focal_kl(torch.tensor(0.0), torch.tensor(4.0).log())  # p = 0.5, q = 0.8
    tensor(0.1056)
    """
    student, teacher = student.float(), teacher.detach().float()
    p, q = student.sigmoid(), teacher.sigmoid()
    on = q * (F.logsigmoid(teacher) - F.logsigmoid(student))
    off = (1 - q) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return ((q - p) ** 2 + _LEAST_DIFFERENCE) ** (gamma / 2) * (on + off)


@torch.no_grad()
def largest_iou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """The largest IoU of each location's box with an object of its image; 0 without objects.

    Args:
        predicted: (N, A, 4).
        boxes: (N, M, 4) of the objects; zero boxes have IoU 0.

    Returns:
        (N, A).
    """
    best = predicted.new_zeros(predicted.shape[:2], dtype=torch.float32)
    for some in boxes.float().split(max(1, _MOST_PAIRS // max(1, best.numel())), dim=1):
        best = torch.maximum(best, pairwise_iou(predicted.float(), some).amax(1))
    return best


def clip_boxes(boxes: Tensor, image_sizes: list[tuple[int, int]]) -> Tensor:
    """Boxes (N, A, 4) within their images, whose heights and widths are given."""
    limits = boxes.new_tensor([[w, h, w, h] for h, w in image_sizes])[:, None]
    return torch.minimum(boxes.clamp(min=0), limits)


@DISTILL_HEAD_REGISTRY.register()
class FocalSoftLabel(LogitImitation):
    """The teacher's class scores, boxes and IoU scores as the student's targets.

    Class scores count everywhere, the others where the teacher's box (or the anchor) is near an
    object. For any two detectors with sigmoids and the same locations. With SOLVER as usual and
    ``MODEL.KD.LABEL_LOSSES False`` this is the paper's soft-label distillation; with
    ``MODEL.KD.ASSIGN_BY teacher`` it is SoLAD.
    """

    student_request = ViewRequest(Stage.PREDICTIONS, decoded=True)

    @configurable
    def __init__(
        self,
        *,
        cls_weight: float = 10.0,
        quality_weight: float = 10.0,
        box_weight: float = 1.3,
        gamma: float = 0.5,
        min_iou: float = 0.1,
        near: str = "teacher",
        **shapes,
    ):
        """
        Args:
            shapes: arguments of :class:`LogitImitation`.

        The other arguments are explained at the config keys, see :func:`add_lad_config`.
        """
        super().__init__(**shapes)
        self.cls_weight = cls_weight
        self.quality_weight = quality_weight
        self.box_weight = box_weight
        self.gamma = gamma
        self.min_iou = min_iou
        self.near = near

    def connect(self, student, teacher) -> None:
        super().connect(student, teacher)
        self._anchors = student.detector.anchor_generator

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns losses of classes and boxes and, if both sides have one, of the IoU output.

        All are divided by the sum of the IoUs by which locations are near objects, of this process,
        and at least by 1.
        """
        own, others = student.decoded, teacher.decoded
        x, y, valid = self.logit_pair(own, others)
        sizes = student.images.image_sizes
        boxes, targets = (clip_boxes(d.boxes.float(), sizes) for d in (own, others))
        targets = targets.detach()
        iou = largest_iou(self._where(student, targets), pad_objects(gt)[0])
        iou = iou.where(valid & (iou > self.min_iou), 0.0)
        total = iou.sum().clamp(min=1)
        giou = giou_loss_of_distances(*(distances_from_origin(b) for b in (boxes, targets)))
        near = iou > 0
        losses = {
            "loss_soft_cls": self.cls_weight * focal_kl(x, y, self.gamma).sum() / total,
            "loss_soft_box": self.box_weight
            * (giou * iou.clamp(min=_LEAST_WEIGHT)).where(near, 0.0).sum()
            / total,
        }
        if own.quality is not None and others.quality is not None:
            quality = focal_kl(own.quality, others.quality, self.gamma).where(near, 0.0).sum()
            losses["loss_soft_iou"] = self.quality_weight * quality / total
        return losses

    def _where(self, student, targets: Tensor) -> Tensor:
        """Boxes (N, A, 4) of the locations that may be near an object."""
        if self.near == "teacher":
            return targets
        anchors = self._anchors(list(student.features.values()))
        return Boxes.cat(anchors).tensor.expand_as(targets)
