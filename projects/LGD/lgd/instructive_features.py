"""Distillation of the instructive features into the student (paper, section 3.3)."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from kd_d2.modeling.distill_heads import (
    DISTILL_HEAD_REGISTRY,
    DistillHead,
    describe_shapes,
    pair_levels,
)
from kd_d2.modeling.phases import current_iteration, phase_length
from kd_d2.modeling.views import Stage, ViewRequest

from .schedule import OvertakingTeacher, distillation_starts_after, is_distilling
from .standardised_distance import squared_distance

logger = logging.getLogger(__name__)

# How often the state of an automatic start is written down: reading it makes the host wait.
_LOG_PERIOD = 20


def instructive_feature_loss(adapted: Sequence[Tensor], instructive: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of standardised features, over all cells of all levels at once.

    So a level weighs as much as it has cells. For a single level it is 2 (1 - r), r being the mean
    correlation of the channels.

    Args:
        adapted: one (N, C, H_l, W_l) a level, the student's features after the adapter.
        instructive: the teacher's, of equal shapes.

    Returns:
        scalar, float32.

    Raises:
        ValueError: if the shapes differ.

    >>> x = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    >>> round(instructive_feature_loss(x, [5 * y + 1 for y in x]).item(), 3)
    0.0
    """
    shapes = [[tuple(x.shape) for x in side] for side in (adapted, instructive)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The student's and the teacher's features must have equal shapes, and these differ: "
            f"{shapes[0]} and {shapes[1]}."
        )
    total = sum(squared_distance(x, z) for x, z in zip(adapted, instructive, strict=True))
    return total / sum(x.numel() for x in adapted)


class GatedGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a scalar that stays on the device."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(gate)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (gate,) = ctx.saved_tensors
        return grad * gate.to(grad.dtype), None


class ConvAdapter(nn.Module):
    """Three 3x3 convolutions on the student's features, the same for all levels."""

    def __init__(self, channels: int):
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.adapter(x)


@DISTILL_HEAD_REGISTRY.register()
class InstructiveFeatures(DistillHead):
    """The student's features, through an adapter, learn to correlate with the teacher's.

    The teacher's side is always detached. While distillation is off, so is the student's: the
    adapter still learns, the student does not.
    """

    @configurable
    def __init__(
        self,
        *,
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
        max_iter: int,
        weight: float = 1.0,
        start: int | str = 0,
        post: int = 0,
    ):
        """
        Args:
            student_shapes, teacher_shapes: level name -> ShapeSpec, paired by stride.
            max_iter: length of the schedule.
            weight: factor of the loss.
            start: first iteration with distillation, or "auto": once the moving average of the
                teacher's classification losses (over 1 % of the schedule) has been below the
                student's for 2 % of the schedule.
            post: distillation ends so many iterations before the end.

        Raises:
            ValueError: if channels differ between levels or sides, or no strides agree.
        """
        super().__init__()
        self.levels = pair_levels(student_shapes, teacher_shapes)
        student = {s: student_shapes[s] for s, _ in self.levels}
        teacher = {t: teacher_shapes[t] for _, t in self.levels}
        widths = {x.channels for side in (student, teacher) for x in side.values()}
        if len(widths) != 1:
            raise ValueError(
                "InstructiveFeatures compares channel by channel with one adapter for all levels, "
                f"and channels differ: student {describe_shapes(student)}; teacher "
                f"{describe_shapes(teacher)}."
            )
        self.max_iter = max_iter
        self.weight = weight
        self.start = start
        self.post = post
        self.distill = ConvAdapter(widths.pop())
        if start == "auto":
            self.auto_start = OvertakingTeacher(
                horizon=round(0.01 * max_iter), patience=round(0.02 * max_iter)
            )
            self.student_request = self.teacher_request = ViewRequest(Stage.LOSSES)
        elif start > max_iter - post:
            logger.warning(
                f"Distillation would start at iteration {start} and end after {max_iter - post}: "
                "the student will never see it (MODEL.KD.LGD.PRE_NONDISTILL, POST_NONDISTILL, "
                "SOLVER.MAX_ITER)."
            )

    @property
    def adapter(self) -> nn.Module:
        """What the student's features pass before they are compared."""
        return self.distill

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        lgd, max_iter = cfg.MODEL.KD.LGD, cfg.SOLVER.MAX_ITER
        start = lgd.PRE_NONDISTILL
        return {
            "student_shapes": student_shapes,
            "teacher_shapes": teacher_shapes,
            "max_iter": max_iter,
            "weight": lgd.LAMBDA,
            "start": start if start == "auto" else distillation_starts_after(start, max_iter),
            "post": phase_length(lgd.POST_NONDISTILL, max_iter),
        }

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_distill": scalar}``."""
        features = [student.features[s] for s, _ in self.levels]
        features = self._gate(features, student.losses, teacher.losses)
        adapted = [self.distill(x) for x in features]
        instructive = [teacher.features[t].detach() for _, t in self.levels]
        return {"loss_distill": self.weight * instructive_feature_loss(adapted, instructive)}

    def _gate(self, features: list[Tensor], student_losses, teacher_losses) -> list[Tensor]:
        """Lets the gradient into the student's features while distillation is on."""
        iteration = current_iteration()
        if self.start != "auto":
            on = is_distilling(iteration, self.start, self.post, self.max_iter)
            _log("lgd/distill_on", float(on))
            return features if on else [x.detach() for x in features]
        gate = self.auto_start(_cls_loss(student_losses), _cls_loss(teacher_losses))
        if not is_distilling(iteration, 0, self.post, self.max_iter):
            _log("lgd/distill_on", 0.0)
            return [x.detach() for x in features]
        if iteration % _LOG_PERIOD == 0:
            _log("lgd/distill_on", gate)
        return [GatedGradient.apply(x, gate) for x in features]


def _cls_loss(losses: dict[str, Tensor]) -> Tensor:
    """Sum of the classification losses of one side.

    Raises:
        ValueError: if there is none to judge the teacher by.
    """
    chosen = [loss for name, loss in losses.items() if "cls" in name]
    if not chosen:
        raise ValueError(
            'MODEL.KD.LGD.PRE_NONDISTILL "auto" compares losses with "cls" in their names, and '
            f"the losses are {', '.join(losses) or 'none'}: give an iteration instead."
        )
    return torch.stack(chosen).sum()


def _log(name: str, value: float | Tensor) -> None:
    if has_event_storage():
        get_event_storage().put_scalar(name, value, smoothing_hint=False)
