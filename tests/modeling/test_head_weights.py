"""Factors of heads over the schedule, and that they reach the losses."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.modeling.head_weights import HeadWeight


def values(weight, *iterations, max_iter=100):
    weight = HeadWeight(weight, max_iter)
    return [weight(i) for i in iterations]


def test_a_number_is_constant():
    assert values(2.5, 0, 50, 99) == [2.5] * 3
    assert HeadWeight(2.5, 100).is_constant


def test_linear_warm_up():
    warm_up = values([[0.0, 0.0], [0.1, 1.0]], 0, 1, 5, 10, 99)
    assert warm_up == pytest.approx([0, 0.1, 0.5, 1, 1])
    assert not HeadWeight([[0.0, 0.0], [0.1, 1.0]], 100).is_constant


def test_off_phases_are_steps():
    curve = [[0.2, 0.0], [0.2, 1.0], [0.9, 1.0], [0.9, 0.0]]
    assert values(curve, 0, 19, 20, 89, 90, 99) == [0, 0, 1, 1, 0, 0]


def test_shares_follow_the_length_of_the_schedule():
    curve = [(0.0, 0.0), (0.5, 1.0)]
    assert values(curve, 250, max_iter=1000) == values(curve, 25, max_iter=100) == [0.5]


@pytest.mark.parametrize("weight", [[], [(0.5, 1), (0.1, 2)], [(-0.1, 1)], [(0.0, 1), (1.5, 2)]])
def test_curves_that_make_no_sense(weight):
    with pytest.raises(ValueError, match="rising shares from 0 to 1"):
        HeadWeight(weight, 100)


def test_factors_reach_the_losses(frozen_cfg, build, random_batch):
    cfg = frozen_cfg()
    cfg.SOLVER.MAX_ITER = 100
    cfg.MODEL.KD.HEAD_WEIGHTS = [[[0.0, 0.0], [0.1, 2.0]]]
    model, batch, seen = build(cfg).train(), random_batch(), {}
    for iteration in (0, 5, 50):
        with EventStorage(iteration) as storage:
            seen[iteration] = model(batch)["loss_pkd"].detach()
            assert storage.latest()["weight/PKD"][0] == min(iteration / 5, 2)
    assert seen[0] == 0
    torch.testing.assert_close(2 * seen[5], seen[50])


def test_one_weight_for_each_head(frozen_cfg, build):
    cfg = frozen_cfg()
    cfg.MODEL.KD.HEAD_WEIGHTS = [1.0, 2.0]
    with pytest.raises(ValueError, match="HEAD_WEIGHTS has 2 entries, and MODEL.KD.HEADS 1"):
        build(cfg)
    cfg.MODEL.KD.HEAD_WEIGHTS = ["much"]
    with pytest.raises(ValueError, match="HEAD_WEIGHTS is .*numbers"):
        build(cfg)


@pytest.mark.parametrize("curve", [[[0.5, 1], [0.1, 0]], [[0, 0], [1000, 1]]])
def test_curves_are_checked_with_the_config(curve, frozen_cfg):
    cfg = frozen_cfg()
    cfg.MODEL.KD.HEAD_WEIGHTS = [curve]
    with pytest.raises(ConfigError, match="rising shares from 0 to 1"):
        check_config(cfg)
