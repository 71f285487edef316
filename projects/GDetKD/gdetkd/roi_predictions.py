"""Heads that imitate what a box head predicts for the regions, between two R-CNNs."""

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from kd_d2.modeling.distill_heads import (
    DISTILL_HEAD_REGISTRY,
    DistillHead,
    check_equal_classes,
)
from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.views import ViewRequest

from .predictions import class_aware_box_loss, class_loss


class RoIPredictionKD(DistillHead):
    """Base: what both box heads say of the same regions is compared."""

    student_request = ViewRequest(regions=frozenset({"predictions"}))
    teacher_request = ViewRequest(regions=frozenset({"predictions"}))
    reads_boxes = True
    compares_classes = True

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        node = cfg.MODEL.KD[cls.__name__.upper()]
        return {key.lower(): value for key, value in node.items()}

    def connect(self, student: DetectorStages, teacher: nn.Module) -> None:
        """
        Raises:
            ValueError: scores are no softmax over classes and background, or classes differ.
        """
        name = type(self).__name__
        for side, stages in (("student", student), ("teacher", teacher.stages)):
            if getattr(stages.regions.predictor, "use_sigmoid_ce", False):
                raise ValueError(
                    f"{name} compares class scores that are a softmax over classes and background, "
                    f"and the {side}'s are sigmoids: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False, "
                    "or take other heads."
                )
        check_equal_classes(name, student, teacher)


@DISTILL_HEAD_REGISTRY.register()
class RoIClassKD(RoIPredictionKD):
    """The student's class scores of the regions are to be the teacher's.

    Of a teacher that knows more classes, those that the student has, and the background.
    """

    @configurable
    def __init__(self, *, temperature: float = 1.0, **kwargs):
        """
        Args:
            temperature: of both softmaxes.
            kwargs: ``weight``, the factor of the mean over the regions.
        """
        super().__init__(**kwargs)
        self.temperature = temperature

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_roi_class_kd": scalar}``."""
        own, aim = student.regions.logits, teacher.regions.logits
        if teacher.regions.classes is not None:
            aim = aim[:, [*teacher.regions.classes, aim.shape[1] - 1]]
        losses = class_loss(own, aim, self.temperature)
        return {"loss_roi_class_kd": self.weight * losses.sum() / max(1, len(losses))}


@DISTILL_HEAD_REGISTRY.register()
class RoIBoxKD(RoIPredictionKD):
    """The student's boxes of the classes that the teacher sees are to be the teacher's."""

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: ``weight``, the factor of the mean over the regions.
        """
        super().__init__(**kwargs)

    def connect(self, student: DetectorStages, teacher: nn.Module) -> None:
        """
        Raises:
            ValueError: one side has one box for all classes.
        """
        super().connect(student, teacher)
        units = []
        for side, stages in (("student", student), ("teacher", teacher.stages)):
            predictor = stages.regions.predictor
            if predictor.bbox_pred.out_features != 4 * stages.num_classes:
                raise ValueError(
                    f"RoIBoxKD compares boxes class by class, and the {side} has one box for all "
                    "classes: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG False, or leave the "
                    "head out."
                )
            units.append(predictor.box2box_transform.weights)
        # the teacher's deltas in the student's units
        self.scale = [own / other for own, other in zip(*units, strict=True)]

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_roi_box_kd": scalar}``."""
        seen = teacher.regions
        deltas = seen.deltas.float()
        deltas = deltas * deltas.new_tensor(self.scale)
        probabilities = seen.logits.float().softmax(1)[:, :-1]
        if seen.classes is not None:
            deltas, probabilities = deltas[:, seen.classes], probabilities[:, seen.classes]
        losses = class_aware_box_loss(student.regions.deltas, deltas, probabilities)
        return {"loss_roi_box_kd": self.weight * losses.sum() / max(1, len(losses))}
