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
    alpha = min(it / warmup, 1.0) if warmup else 1.0
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


@pytest.mark.parametrize(
    "length, steps, warmup",
    [(300, (), 1000), (500, (400, 450), 1000), (1500, (1000, 1200), 1000), (90, (60, 80), 0)],
)
def test_short_schedules_follow_the_formula(cfg, length, steps, warmup):
    """Detectron2's own would warm up to the rate after the decay."""
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = length, steps, warmup
    history = lrs(cfg, range(length))
    expected = [formula(it, 0.01, steps, warmup=warmup) for it in range(length)]
    assert [student for student, _ in history.values()] == pytest.approx(expected, rel=1e-9)


def test_a_milestone_after_the_end_is_named(cfg, caplog):
    cfg.SOLVER.STEPS = (4000, 2000)
    for it, (student, _) in lrs(cfg, (1999, 2000, 3999)).items():
        assert student == pytest.approx(formula(it, 0.01, (2000,)))
    assert "ends after 4000 iterations (SOLVER.MAX_ITER) and does not reach 4000" in caplog.text


def test_a_constant_warm_up(cfg):
    cfg.SOLVER.WARMUP_METHOD, cfg.SOLVER.WARMUP_FACTOR = "constant", 0.25
    history = lrs(cfg, (0, 999, 1000))
    assert [student for student, _ in history.values()] == pytest.approx([0.0025, 0.0025, 0.01])


def test_cosine_is_detectrons(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.WARMUP_ITERS = "WarmupCosineLR", 10
    history = lrs(cfg, (2000, 3000))
    assert [student for student, _ in history.values()] == pytest.approx([0.005, 0.001464466])


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
