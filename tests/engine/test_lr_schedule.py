"""LGD's schedule by its formula, per part."""

import pytest
from detectron2.engine.hooks import LRScheduler as LRHook
from torch import nn

from kd_d2.engine import build_lr_scheduler, build_optimizer


class Distiller(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.Linear(3, 1)
        self.teacher = nn.Linear(3, 1)


def formula(it, base, steps, gamma=0.1, warmup=1000, factor=1e-3):
    """lr(it) = base * warm(it) * gamma^(milestones <= it), as LGD was published."""
    alpha = min(it / warmup, 1.0)
    warm = factor * (1 - alpha) + alpha
    return base * warm * gamma ** sum(step <= it for step in steps)


@pytest.fixture
def cfg(tiny_cfg):
    cfg = tiny_cfg()
    cfg.SOLVER.MAX_ITER = 4000
    cfg.SOLVER.STEPS = (2000, 3000)
    cfg.SOLVER.BASE_LR = 0.01
    return cfg


def lrs(cfg, iterations):
    optimizer = build_optimizer(cfg, Distiller())
    scheduler = build_lr_scheduler(cfg, optimizer)
    history = {}
    for it in range(max(iterations) + 1):
        if it in iterations:
            parts = optimizer.parts
            history[it] = (
                parts["student"].param_groups[0]["lr"],
                parts["teacher"].param_groups[0]["lr"],
            )
        optimizer.step()
        scheduler.step()
    return history


POINTS = (0, 1, 500, 999, 1000, 1999, 2000, 2999, 3000, 3999)


def test_both_parts_follow_the_formula(cfg):
    for it, (student, teacher) in lrs(cfg, POINTS).items():
        expected = formula(it, 0.01, (2000, 3000))
        assert student == pytest.approx(expected, rel=1e-6), it
        assert teacher == pytest.approx(expected, rel=1e-6), it


def test_ends_of_the_warm_up(cfg):
    history = lrs(cfg, (0, 1000))
    assert history[0][0] == pytest.approx(0.01 * 1e-3)
    assert history[1000][0] == pytest.approx(0.01)


def test_the_teacher_has_a_schedule_of_its_own(cfg):
    teacher = cfg.SOLVER.TEACHER
    teacher.BASE_LR, teacher.STEPS, teacher.GAMMA = 0.02, [1500], 0.5
    teacher.WARMUP_ITERS, teacher.WARMUP_FACTOR = 100, 0.1
    for it, (student, taught) in lrs(cfg, (*POINTS, 50, 1499, 1500)).items():
        assert student == pytest.approx(formula(it, 0.01, (2000, 3000)), rel=1e-6), it
        expected = formula(it, 0.02, (1500,), gamma=0.5, warmup=100, factor=0.1)
        assert taught == pytest.approx(expected, rel=1e-6), it


def test_state_restores_position_of_all_parts(cfg):
    def build():
        optimizer = build_optimizer(cfg, Distiller())
        return optimizer, build_lr_scheduler(cfg, optimizer)

    optimizer, scheduler = build()
    for _ in range(1234):
        optimizer.step()
        scheduler.step()
    resumed_optimizer, resumed = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.last_epoch == scheduler.last_epoch == 1234
    resumed_optimizer.step()
    resumed.step()
    assert resumed_optimizer.param_groups[0]["lr"] == pytest.approx(formula(1235, 0.01, (2000,)))


def test_detectrons_hook_finds_a_group_to_log(cfg):
    optimizer = build_optimizer(cfg, Distiller())
    assert LRHook.get_best_param_group_id(optimizer) in range(len(optimizer.param_groups))


def test_plain_models_get_detectrons_scheduler(cfg):
    from detectron2.solver import LRMultiplier

    model = nn.Linear(1, 1)
    assert type(build_lr_scheduler(cfg, build_optimizer(cfg, model))) is LRMultiplier
