"""Learning-rate schedules: Detectron2's for each optimiser, stepping together.

``WarmupMultiStepLR`` is LGD's schedule: ``lr(it) = base * warm(it) * GAMMA^(milestones <= it)``.
Detectron2's own differs from the formula where a milestone, or the end, lies within the warm-up: it
warms up to the decayed rate.
"""

import logging
from bisect import bisect_right
from typing import Any

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.lr_scheduler import _get_warmup_factor_at_iter
from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .optimizer import JointOptimizer, teacher_solver

__all__ = ["JointLRScheduler", "build_lr_scheduler"]

logger = logging.getLogger(__name__)


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """Build the schedule of an optimiser from :func:`build_optimizer`.

    A trainable teacher follows SOLVER.TEACHER's STEPS, GAMMA and WARMUP_*; MAX_ITER is common.
    """
    if not isinstance(optimizer, JointOptimizer):
        return _build_single(cfg, optimizer)
    return JointLRScheduler(
        student=_build_single(cfg, optimizer.parts["student"]),
        teacher=_build_single(teacher_solver(cfg), optimizer.parts["teacher"]),
    )


def _build_single(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR" or solver.RESCALE_INTERVAL:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    return LRMultiplier(optimizer, _WarmupMultiStep(solver), solver.MAX_ITER)


class _WarmupMultiStep(ParamScheduler):
    """Warm-up times decay, each by its own."""

    def __init__(self, solver: CfgNode):
        late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
        if late:
            logger.warning(
                f"SOLVER.STEPS: training ends after {solver.MAX_ITER} iterations (SOLVER.MAX_ITER) "
                f"and does not reach {', '.join(map(str, late))}."
            )
        self.max_iter = solver.MAX_ITER
        self.milestones = sorted(solver.STEPS)
        self.gamma = solver.GAMMA
        self.warmup = solver.WARMUP_METHOD, solver.WARMUP_ITERS, solver.WARMUP_FACTOR

    def __call__(self, where: float) -> float:
        iteration = round(where * self.max_iter)
        decay = self.gamma ** bisect_right(self.milestones, iteration)
        method, length, factor = self.warmup
        return decay * _get_warmup_factor_at_iter(method, iteration, length, factor)


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
