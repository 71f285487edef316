"""Distillation heads: (student, teacher, ground truth) -> losses."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn

from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.views import DetectorView, ViewRequest
from kd_d2.registry import NamedRegistry

DISTILL_HEAD_REGISTRY = NamedRegistry("DISTILL_HEAD", "distillation head (MODEL.KD.HEADS)")
DISTILL_HEAD_REGISTRY.__doc__ = """
Registry of distillation heads.

The registered object is called as ``obj(cfg, student_shapes, teacher_shapes)``, the two being
level name -> ShapeSpec from fine to coarse, and returns a :class:`DistillHead`.
"""


class DistillHead(nn.Module):
    """Base of the heads. A head owns its adaptation layers and says what it needs to see.

    Attributes:
        student_request, teacher_request: the stages and taps this head reads of either side.
        reads_boxes: it reads the labels' boxes, which must be upright, then.
        compares_classes: it compares class by class, so the teacher must know the student's.
        lr_factor: learning rate of its own layers, in that of the student.
    """

    student_request = ViewRequest()
    teacher_request = ViewRequest()
    reads_boxes = False
    compares_classes = False
    lr_factor = 1.0

    def connect(self, student: DetectorStages, teacher: nn.Module) -> None:
        """Called once, when both sides are built, and before the teacher's weights are read.

        For checks that need more than the shapes of the features.

        Args:
            teacher: see ``TEACHER_REGISTRY``.

        Raises:
            ValueError: the head does not serve this pair.
        """

    def forward(
        self, student: DetectorView, teacher: DetectorView, gt: list[Instances]
    ) -> dict[str, Tensor]:
        """Returns loss name -> scalar in float32; the names are equal for every batch."""
        raise NotImplementedError


def build_distill_head(
    name: str,
    cfg: CfgNode,
    student_shapes: dict[str, ShapeSpec],
    teacher_shapes: dict[str, ShapeSpec],
) -> DistillHead:
    """Builds the head registered as ``name`` for a student and a teacher of the given shapes."""
    return DISTILL_HEAD_REGISTRY.get(name)(cfg, student_shapes, teacher_shapes)


def check_equal_classes(head: str, student: DetectorStages, teacher: nn.Module) -> None:
    """
    Raises:
        ValueError: both sides are compared class by class, and have unequal numbers of classes.
    """
    own, known = student.num_classes, teacher.num_classes
    if own != known:
        raise ValueError(
            f"{head} compares class by class, and the student has {own} classes, the teacher "
            f"{known}: name the teacher's in MODEL.KD.TEACHER.CLASSES, so that those of equal "
            "names meet."
        )


def pair_levels(
    student: dict[str, ShapeSpec], teacher: dict[str, ShapeSpec]
) -> list[tuple[str, str]]:
    """Pairs of (student level, teacher level) with the same stride, from fine to coarse.

    Levels are matched by stride and not by name, so P3 of a RetinaNet meets P3 of an R-CNN, and
    "res4" of one detector may meet "p4" of another.

    Raises:
        ValueError: if no stride occurs on both sides; names all shapes.
    """
    by_stride = {shape.stride: name for name, shape in teacher.items()}
    pairs = [(s, by_stride[x.stride]) for s, x in student.items() if x.stride in by_stride]
    if not pairs:
        raise ValueError(
            "Student and teacher have no pyramid level of equal stride: student "
            f"{describe_shapes(student)}; teacher {describe_shapes(teacher)}."
        )
    return pairs


def describe_shapes(shapes: dict[str, ShapeSpec]) -> str:
    """E.g. ``p3 (256 channels, stride 8), p4 (256 channels, stride 16)``."""
    return ", ".join(f"{n} ({s.channels} channels, stride {s.stride})" for n, s in shapes.items())
