"""Shares of losses in the gradient of the student's features."""

import logging

import pytest
import torch
from detectron2.utils.events import EventStorage

from kd_d2.modeling.gradient_share import gradient_shares


def test_shares_are_those_of_the_norms():
    x, y = torch.ones(4, requires_grad=True), torch.ones(9, requires_grad=True)
    losses = {"a": 3 * x.sum() + 4 * y.sum(), "b": (2 * x).sum(), "c": torch.zeros(())}
    norms = {"a": (9 * 4 + 16 * 9) ** 0.5, "b": 4.0, "c": 0.0}
    shares = gradient_shares(losses, [x, y])
    total = sum(norms.values())
    assert shares == pytest.approx({name: norm / total for name, norm in norms.items()})
    losses["a"].backward()  # the graph is still there
    assert torch.equal(x.grad, torch.full((4,), 3.0))


def test_nobody_pulls():
    x = torch.ones(2, requires_grad=True)
    assert gradient_shares({"a": torch.zeros(())}, [x]) == {"a": 0.0}


def test_features_that_need_no_gradient():
    x = torch.ones(2, requires_grad=True)
    assert gradient_shares({"a": x.sum()}, [torch.ones(2)]) == {"a": 0.0}


def test_shares_are_those_of_the_largest_weight(frozen_cfg, build, random_batch):
    def shares(weight):
        torch.manual_seed(0)
        cfg = frozen_cfg()
        cfg.SOLVER.MAX_ITER = 100
        cfg.MODEL.KD.HEAD_WEIGHTS = [weight]
        model = build(cfg).train()
        with EventStorage(1) as storage:
            losses = model(random_batch())
        return storage.latest()["gradient_share/pkd"][0], losses["loss_pkd"]

    (warming_up, small), (constant, large) = shares([[0.0, 0.0], [0.5, 2.0]]), shares(2.0)
    assert warming_up == pytest.approx(constant) and small < 0.1 * large


def test_logged_in_the_first_iterations_without_changing_them(
    frozen_cfg, build, random_batch, caplog
):
    def gradients(num_logged, iteration):
        torch.manual_seed(0)
        cfg = frozen_cfg()
        cfg.MODEL.KD.LOG_GRADIENT_SHARES = num_logged
        model = build(cfg).train()
        with EventStorage(iteration) as storage:
            losses = model(random_batch())
        sum(losses.values()).backward()
        shares = {k: v for k, (v, _) in storage.latest().items() if k.startswith("gradient")}
        return [p.grad for p in model.parameters() if p.requires_grad], shares

    with caplog.at_level(logging.INFO):
        grads, shares = gradients(3, iteration=2)
    assert shares.keys() == {"gradient_share/detection", "gradient_share/pkd"}
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    assert "Share of each loss in the gradient" in caplog.text
    plain, none = gradients(0, iteration=2)
    late, none_late = gradients(3, iteration=3)
    assert not none and not none_late
    for a, b, c in zip(grads, plain, late, strict=True):  # fvcore's scripted loss rounds by its age
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
