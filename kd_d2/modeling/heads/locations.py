"""What the prediction-imitation heads share: which locations meet, and how many count.

Shapes: N images, A locations of all levels together, K classes.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.distill_heads import DistillHead, check_equal_classes, describe_shapes
from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest


class PredictionImitation(DistillHead):
    """Base of the heads that compare what two dense detectors predict.

    An R-CNN has no locations, and its proposals are not those of its teacher.
    """

    student_request = ViewRequest(Stage.ASSIGNMENT, decoded=True)
    teacher_request = ViewRequest(Stage.PREDICTIONS, decoded=True)
    compares_features = False

    def __init__(
        self, *, student_shapes: dict[str, ShapeSpec], teacher_shapes: dict[str, ShapeSpec]
    ):
        """
        Args:
            student_shapes, teacher_shapes: level name -> ShapeSpec, from fine to coarse.

        Raises:
            ValueError: the levels differ in stride or, if features are compared, in channels.
        """
        super().__init__()
        sides = [
            [(x.stride, x.channels if self.compares_features else None) for x in shapes.values()]
            for shapes in (student_shapes, teacher_shapes)
        ]
        if sides[0] != sides[1]:
            what = "stride and channels" if self.compares_features else "stride"
            raise ValueError(
                f"{type(self).__name__} compares predictions cell by cell, so all levels must "
                f"agree in {what}: student {describe_shapes(student_shapes)}; teacher "
                f"{describe_shapes(teacher_shapes)}."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        """Every key of the head's node is the argument of the same name."""
        node = cfg.MODEL.KD[cls.__name__.upper()]
        shapes = {"student_shapes": student_shapes, "teacher_shapes": teacher_shapes}
        return shapes | {key.lower(): value for key, value in node.items()}


class LogitImitation(PredictionImitation):
    """Base of the heads that compare the class logits of equal locations."""

    compares_classes = True

    def connect(self, student: DetectorStages, teacher: nn.Module) -> None:
        """
        Raises:
            ValueError: the two have unequal numbers of locations in a cell, or of classes.
        """
        name = type(self).__name__
        own, others = student.locations_per_cell(), teacher.stages.locations_per_cell()
        if own != others:
            raise ValueError(
                f"{name} compares equal locations, and the student has {own} in each cell, the "
                f"teacher {others}: take a teacher with the same grid of anchors or points, or "
                "another head of MODEL.KD.HEADS."
            )
        check_equal_classes(name, student, teacher)

    def logit_pair(
        self, student: DensePredictions, teacher: DensePredictions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The class logits of both sides, location by location.

        Returns:
            student's and teacher's, the latter detached (N, A, K); where both are valid (N, A).

        Raises:
            ValueError: the levels have other sizes.
        """
        sizes, others = ([tuple(size) for size in x.sizes] for x in (student, teacher))
        if sizes != others:
            raise unequal_levels(type(self).__name__, sizes, others)
        return student.logits, teacher.logits.detach(), student.valid & teacher.valid


def unequal_levels(head: str, student: list, teacher: list) -> ValueError:
    """What to say of levels of equal stride that have other sizes (H, W) all the same."""
    return ValueError(
        f"{head} needs levels of equal size, and the student's are {student}, the teacher's "
        f"{teacher}, because their backbones pad images differently: take another teacher, or "
        "another head of MODEL.KD.HEADS."
    )


def best_probability(decoded: DensePredictions) -> Tensor:
    """How sure a detector is of an object at each location (N, A), float32; 0 if not valid."""
    return decoded.logits.float().amax(-1).sigmoid().where(decoded.valid, 0.0)


def assigned_classes(view: DetectorView) -> tuple[Tensor, Tensor] | None:
    """The class that each location of a dense detector learns, and whether it learns one.

    Returns:
        (N, A) classes, arbitrary without one; (N, A). None for a detector that assigns nothing,
        like AutoAssign.
    """
    if view.assignment is None:
        return None
    labels, last = torch.stack(list(view.assignment[0])), view.decoded.logits.shape[-1] - 1
    return labels.clamp(0, last), (labels >= 0) & (labels <= last)


def count_positives(student: DetectorView, teacher: DensePredictions) -> Tensor:
    """How many locations of the student learn an object.

    Where its detector assigns nothing, so many as the teacher is sure of: the sum of
    :func:`best_probability`.

    Returns:
        scalar, of this process.
    """
    assigned = assigned_classes(student)
    return best_probability(teacher).sum() if assigned is None else assigned[1].sum()
