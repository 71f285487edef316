"""Learning-rate schedules: Detectron2's for each optimiser, stepping together.

Detectron2's ``WarmupMultiStepLR`` is LGD's schedule:
``lr(it) = base * warm(it) * GAMMA^(milestones <= it)``.
"""

from typing import Any

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_single_lr_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .optimizer import JointOptimizer, teacher_solver

__all__ = ["JointLRScheduler", "build_lr_scheduler"]


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Build the schedule of an optimiser from :func:`build_optimizer`.

    A trainable teacher follows SOLVER.TEACHER's STEPS, GAMMA and WARMUP_*; MAX_ITER is common.
    """
    if not isinstance(optimizer, JointOptimizer):
        return build_single_lr_scheduler(cfg, optimizer)
    return JointLRScheduler(
        student=build_single_lr_scheduler(cfg, optimizer.parts["student"]),
        teacher=build_single_lr_scheduler(teacher_solver(cfg), optimizer.parts["teacher"]),
    )


class JointLRScheduler(LRScheduler):
    """Several schedulers that step as one.

    A torch scheduler by type, which is what Detectron2's hook asks before it saves a state;
    ``LRScheduler.__init__`` is not called because the parts hold the optimisers.
    """

    def __init__(self, **parts: LRScheduler):
        self.parts = parts

    @property
    def last_epoch(self) -> int:
        return next(iter(self.parts.values())).last_epoch

    def step(self, epoch: int | None = None) -> None:
        for part in self.parts.values():
            part.step()

    def get_lr(self) -> list[float]:
        return [lr for part in self.parts.values() for lr in part.get_lr()]

    def get_last_lr(self) -> list[float]:
        return [lr for part in self.parts.values() for lr in part.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
