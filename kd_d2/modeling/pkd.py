"""PKD: imitation of channel-standardised FPN features (arXiv 2207.02039)."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from kd_d2.modeling.distill_heads import (
    DISTILL_HEAD_REGISTRY,
    DistillHead,
    describe_shapes,
    pair_levels,
)


def standardize_channels(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Gives every channel zero mean and unit variance over the batch and all cells.

    Args:
        x: (N, C, H, W), any floating dtype.
        eps: added to the variance.

    Returns:
        (N, C, H, W) in float32; a constant channel becomes zero.

    >>> standardize_channels(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)).flatten().tolist()
    [-1.0, 1.0]
    """
    x = x.float()
    var, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
    # Not std + eps: the square root of a variance of zero has no finite gradient.
    return (x - mean) * torch.rsqrt(var + eps)


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of standardised features: 1 - Pearson's r, averaged.

    Args:
        student, teacher: (N, C, H, W).

    >>> x = torch.randn(2, 3, 4, 4)
    >>> round(pkd_loss(x, 5 * x + 1).item(), 4), round(pkd_loss(x, -x).item(), 4)
    (0.0, 2.0)
    """
    return F.mse_loss(standardize_channels(student), standardize_channels(teacher)) / 2


@DISTILL_HEAD_REGISTRY.register()
class PKD(DistillHead):
    """Features of equal stride are compared, level by level, without masks or parameters.

    Standardising removes the difference in magnitude between detectors, channels and levels, so
    the same loss serves pairs of different kinds.
    """

    @configurable
    def __init__(
        self,
        *,
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
        weight: float = 10.0,
        adapter: bool = False,
    ):
        """
        Args:
            weight: factor of the sum over levels.
            adapter: project the student's features by a learned 1x1 convolution (one for all
                levels) first; needed if the channel counts differ.

        Raises:
            ValueError: if no strides agree, or channels differ and there is no adapter.
        """
        super().__init__()
        self.levels = pair_levels(student_shapes, teacher_shapes)
        self.weight = weight
        student = {s: student_shapes[s] for s, _ in self.levels}
        teacher = {t: teacher_shapes[t] for _, t in self.levels}
        channels = [{x.channels for x in side.values()} for side in (student, teacher)]
        shapes = f"student {describe_shapes(student)}; teacher {describe_shapes(teacher)}"
        if adapter and any(len(side) > 1 for side in channels):
            raise ValueError(f"PKD's adapter needs equal channels on all levels: {shapes}.")
        if not adapter and any(student[s].channels != teacher[t].channels for s, t in self.levels):
            raise ValueError(
                "PKD compares features channel by channel, and these differ: "
                f"{shapes}. Set MODEL.KD.PKD.ADAPTER True to project the student's first."
            )
        self.adapter = (
            nn.Conv2d(channels[0].pop(), channels[1].pop(), 1) if adapter else nn.Identity()
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        return {
            "student_shapes": student_shapes,
            "teacher_shapes": teacher_shapes,
            "weight": cfg.MODEL.KD.PKD.WEIGHT,
            "adapter": cfg.MODEL.KD.PKD.ADAPTER,
        }

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_pkd": scalar}``."""
        loss = 0.0
        for s, t in self.levels:
            x, y = self.adapter(student.features[s]), teacher.features[t].detach()
            # Both canvases start at the image's corner and differ only in how far they are padded.
            h, w = min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3])
            loss = loss + pkd_loss(x[..., :h, :w], y[..., :h, :w])
        return {"loss_pkd": self.weight * loss}
