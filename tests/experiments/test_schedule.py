from pathlib import Path

import pytest

from kd_d2.engine import load_config
from kd_d2.experiments.schedule import schedule_overrides

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/quickstart/plain_retinanet.yaml")


def flat(overrides):
    return [text for pair in overrides.items() for text in pair]


def test_the_configs_own_schedule_needs_no_overrides():
    assert schedule_overrides(CONFIG, None) == ({}, load_config(CONFIG).SOLVER.MAX_ITER)


def test_a_longer_schedule_keeps_its_proportions():
    own = load_config(CONFIG)
    overrides, length = schedule_overrides(CONFIG, 3 * own.SOLVER.MAX_ITER)
    cfg = load_config(CONFIG, flat(overrides))
    assert cfg.SOLVER.MAX_ITER == length == 3 * own.SOLVER.MAX_ITER
    assert tuple(3 * step for step in own.SOLVER.STEPS) == cfg.SOLVER.STEPS
    assert cfg.SOLVER.WARMUP_ITERS == 3 * own.SOLVER.WARMUP_ITERS
    assert cfg.TEST.EVAL_PERIOD == 3 * own.TEST.EVAL_PERIOD
    assert length == cfg.SOLVER.CHECKPOINT_PERIOD


@pytest.mark.parametrize("iterations", [1, 2, 5, 7])
def test_steps_of_a_very_short_schedule_stay_apart_and_inside(iterations):
    overrides, _ = schedule_overrides(CONFIG, iterations)
    steps = load_config(CONFIG, flat(overrides)).SOLVER.STEPS
    assert list(steps) == sorted(set(steps))
    assert all(0 < step < iterations for step in steps)


def test_no_schedule_at_all():
    with pytest.raises(ValueError, match="at least one iteration"):
        schedule_overrides(CONFIG, 0)
