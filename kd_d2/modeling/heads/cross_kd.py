"""CrossKD: the teacher's head judges the student's towers (arXiv 2306.11369).

Shapes: N images, C channels, H_l x W_l cells of level l, A locations of all levels together, B bins
of a side of a box.
"""

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.fcos_targets import distances_to_boxes, giou_loss_of_distances
from kd_d2.modeling.detectors.one_per_cell import mean_over_gpus
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.locations import (
    PredictionImitation,
    best_probability,
    count_positives,
    unequal_levels,
)
from kd_d2.modeling.heads.pkd import standardize_channels
from kd_d2.modeling.heads.soft_label import soft_label_loss
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest


def align_channels(x: Tensor, like: Tensor) -> Tensor:
    """Gives every channel the mean and the deviation that it has in another map.

    Both over the batch and all cells. The layers behind know no other features than the teacher's.

    Args:
        x, like: (N, C, H, W), any floating dtype.

    Returns:
        (N, C, H, W), float32; it is ``like`` if the two are equal.

    >>> x, like = torch.tensor([1.0, 3.0]), torch.tensor([10.0, 14.0])
    >>> align_channels(x.view(2, 1, 1, 1), like.view(2, 1, 1, 1)).flatten()
    tensor([10., 14.])
    """
    var, mean = torch.var_mean(like.float(), dim=(0, 2, 3), keepdim=True, correction=0)
    return standardize_channels(x) * var.sqrt() + mean


def distribution_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence from the teacher's distributions of the sides of a box, mean over the sides.

    1/4 sum over sides of KL(softmax(teacher) || softmax(student)): localization distillation
    (arXiv 2102.12252) at temperature 1.

    Args:
        student, teacher: (..., 4, B), any floating dtype.

    Returns:
        (...), float32.

    >>> teacher = torch.tensor([3.0, 1.0]).log().expand(4, 2)
    >>> distribution_loss(torch.zeros(4, 2), teacher)
    tensor(0.1308)
    """
    log_q, log_p = (x.float().log_softmax(-1) for x in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(-1)


def box_loss(student: Tensor, teacher: Tensor, points: Tensor) -> Tensor:
    """1 - GIoU of the boxes of each location.

    Args:
        student, teacher: (..., A, 4) in pixels.
        points: (A, 2), any points, best those of the locations: rounding is finest near them.

    Returns:
        (..., A).

    >>> box, other = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 2]])
    >>> box_loss(box, other, torch.zeros(1, 2))
    tensor([0.5000])
    """
    return giou_loss_of_distances(
        distances_to_boxes(points, student), distances_to_boxes(points, teacher)
    )


@DISTILL_HEAD_REGISTRY.register()
class CrossKD(PredictionImitation):
    """What the teacher's head makes of the student's towers is to be what it makes of its own.

    Behind a block of either tower the student's features go through the rest of the teacher's;
    these cross-head predictions imitate the teacher's. So the student's own predictors serve the
    annotations alone, and are not disturbed where the teacher contradicts those.

    All that is compared are predictions of one head, in the classes and at the locations of the
    teacher: the detectors may differ, if their towers are equally wide. The class scores count
    everywhere, and boxes by how sure the teacher is of an object there.
    """

    compares_features = True

    @configurable
    def __init__(
        self,
        *,
        blocks: int = 3,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        beta: float = 1.0,
        align: bool = True,
        **shapes,
    ):
        """
        Args:
            blocks: so many blocks of either tower are the student's, the others the teacher's.
            cls_weight: factor of the sum over locations, divided by the student's positives.
            box_weight: of the mean over locations, weighted by the teacher's best probability.
            beta: see :func:`soft_label_loss`.
            align: see :func:`align_channels`; before the activation.
            shapes: arguments of :class:`PredictionImitation`.
        """
        super().__init__(**shapes)
        self.taps = tuple(f"{tower}_tower.{blocks - 1}.before_relu" for tower in ("cls", "box"))
        self.student_request = ViewRequest(Stage.ASSIGNMENT, self.taps, decoded=True)
        # Decoded here: its view has the student's classes alone, and its head tells all of its own.
        self.teacher_request = ViewRequest(Stage.PREDICTIONS, self.taps)
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.beta = beta
        self.align = align

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_cross_kd_cls": scalar, "loss_cross_kd_box": scalar}``.

        Raises:
            ValueError: levels have different sizes.
        """
        stages = teacher.stages
        cross_head = stages.predict_from(teacher.features, self.towers(student, teacher))
        both = (cross_head, teacher.predictions)
        crossed, target = (stages.decode(teacher.images, teacher.features, x) for x in both)
        bins, target_bins = (stages.box_distributions(x, target.per_cell) for x in both)
        certainty = best_probability(target)
        num_positive, total = mean_over_gpus(
            torch.stack((count_positives(student, target), certainty.sum()))
        )
        classes = soft_label_loss(crossed.logits, target.logits, self.beta)
        classes = classes.where(target.valid, 0.0).sum() / num_positive
        if bins is None:
            boxes = box_loss(crossed.boxes, target.boxes, target.points)
        else:
            boxes = distribution_loss(bins, target_bins)
        boxes = (certainty * boxes).sum() / total
        return {
            "loss_cross_kd_cls": self.cls_weight * classes,
            "loss_cross_kd_box": self.box_weight * boxes,
        }

    def towers(self, student: DetectorView, teacher: DetectorView) -> dict[str, list[Tensor]]:
        """The student's features of each level, by tap, as the teacher's head is to read them."""
        towers = {}
        for tap in self.taps:
            sides = student.taps[tap], teacher.taps[tap]
            sizes, others = ([tuple(x.shape[2:]) for x in side] for side in sides)
            if sizes != others:
                raise unequal_levels("CrossKD", sizes, others)
            towers[tap] = [
                align_channels(x, y.detach()) if self.align else x
                for x, y in zip(*sides, strict=True)
            ]
        return towers
