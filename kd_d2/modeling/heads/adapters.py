"""What the feature-imitation heads share: which levels meet, and in which channels."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from kd_d2.modeling.distill_heads import DistillHead, describe_shapes, pair_levels
from kd_d2.modeling.views import DetectorView


class FeatureImitation(DistillHead):
    """Base of the heads that compare features of equal stride, cell by cell.

    Attributes:
        levels: (student level, teacher level), from fine to coarse.
        strides, channels: of each pair; channels are the teacher's, which the adapter leads to.
        adapter: what the student's features pass before they are compared, one for all levels.
    """

    def __init__(
        self,
        *,
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
        adapter: bool = False,
    ):
        """
        Args:
            adapter: project the student's features by a learned 1x1 convolution first; needed if
                the channel counts differ.

        Raises:
            ValueError: if no strides agree, or channels differ and there is no adapter.
        """
        super().__init__()
        self.levels = pair_levels(student_shapes, teacher_shapes)
        student = {s: student_shapes[s] for s, _ in self.levels}
        teacher = {t: teacher_shapes[t] for _, t in self.levels}
        self.strides = [x.stride for x in student.values()]
        self.channels = [x.channels for x in teacher.values()]
        self.adapter = _build_adapter(type(self).__name__, student, teacher, adapter)

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        """Every key of the head's node is the argument of the same name."""
        node = cfg.MODEL.KD[cls.__name__]
        shapes = {"student_shapes": student_shapes, "teacher_shapes": teacher_shapes}
        return shapes | {key.lower(): value for key, value in node.items()}

    def feature_pairs(
        self, student: DetectorView, teacher: DetectorView
    ) -> list[tuple[Tensor, Tensor]]:
        """The student's adapted and the teacher's detached features of each pair of levels.

        Returns:
            two maps (N, C, H, W) of equal shape a pair, in the dtypes they come in.
        """
        pairs = []
        for s, t in self.levels:
            x, y = self.adapter(student.features[s]), teacher.features[t].detach()
            # Both canvases start at the image's corner and differ only in how far they are padded.
            h, w = min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3])
            pairs.append((x[..., :h, :w], y[..., :h, :w]))
        return pairs


def _build_adapter(
    head: str, student: dict[str, ShapeSpec], teacher: dict[str, ShapeSpec], adapter: bool
) -> nn.Module:
    channels = [[x.channels for x in side.values()] for side in (student, teacher)]
    shapes = f"student {describe_shapes(student)}; teacher {describe_shapes(teacher)}"
    if not adapter:
        if channels[0] == channels[1]:
            return nn.Identity()
        raise ValueError(
            f"{head} compares features channel by channel, and these differ: {shapes}. "
            f"Set MODEL.KD.{head}.ADAPTER True to project the student's first."
        )
    if any(len(set(side)) > 1 for side in channels):
        raise ValueError(
            f"{head} has one adapter for all levels (MODEL.KD.{head}.ADAPTER), and channels differ "
            f"between them: {shapes}."
        )
    return nn.Conv2d(channels[0][0], channels[1][0], 1)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Sum of the squared differences, divided by the number of images.

    Args:
        x, y: (N, C, H, W), any floating dtype.

    Returns:
        scalar, float32.

    >>> import torch
    >>> squared_error(torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1))
    tensor(3.)
    """
    return (x.float() - y.float()).square().sum() / len(x)
