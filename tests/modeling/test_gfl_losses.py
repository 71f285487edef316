"""The pure functions of GFL against hand-computed values and loops written from the paper."""

import math

import pytest
import torch
from gfl_cases import slow_softmax

from kd_d2.modeling.detectors.gfl_losses import (
    distribution_focal_loss,
    integral,
    quality_focal_loss,
)

LN2 = math.log(2)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- integral


def test_integral_by_hand():
    logits = torch.tensor([[0.0, 0, 0, 0, 0], [-99, -99, -99, 40, -99], [0, 0, -99, -99, -99]])
    torch.testing.assert_close(integral(logits), torch.tensor([2.0, 3.0, 0.5]))
    # 1 + 2 + 1 parts at the distances 0, 1, 2, and 4 parts at 3
    assert integral(torch.tensor([1.0, 2, 1, 4]).log()).item() == pytest.approx((2 + 2 + 12) / 8)


def test_integral_equals_loops():
    logits = random(5, 4, 17) * 3
    expected = [
        [sum(i * p for i, p in enumerate(slow_softmax(side))) for side in cell]
        for cell in logits.double().tolist()
    ]
    torch.testing.assert_close(integral(logits), torch.tensor(expected))


def test_integral_is_exact_under_autocast():
    logits = random(50, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(integral(logits), integral(logits.clone()))
        found = integral(logits)
    assert torch.equal(found, integral(logits)) and found.dtype == torch.float32


# ---- quality focal loss


@pytest.mark.parametrize(
    "logit, target, expected",
    [
        (0.0, 0.0, 0.25 * LN2),
        (0.0, 1.0, 0.25 * LN2),
        (0.0, 0.75, 0.0625 * LN2),
        # p = 3/4: -(0.25 ln 3/4 + 0.75 ln 1/4)
        (math.log(3), 0.25, 0.25 * (0.25 * math.log(4 / 3) + 0.75 * math.log(4))),
        (math.log(3), 0.75, 0.0),
    ],
)
def test_quality_focal_loss_by_hand(logit, target, expected):
    loss = quality_focal_loss(torch.tensor(logit), torch.tensor(target))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("beta", [1.0, 2.0, 2.5])
def test_quality_focal_loss_equals_loops(beta):
    logits, targets = random(40) * 3, random(40, seed=1).sigmoid()
    expected = []
    for z, y in zip(logits.double().tolist(), targets.double().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
        expected.append(abs(y - p) ** beta * entropy)
    torch.testing.assert_close(quality_focal_loss(logits, targets, beta), torch.tensor(expected))


def test_gradient_goes_through_both_factors():
    """At p = 1/2 and target 0: d/dz p^2 -ln(1-p) = 2 p p(1-p) ln 2 + p^2 p."""
    logit = torch.zeros(1, requires_grad=True)
    quality_focal_loss(logit, torch.zeros(1)).backward()
    assert logit.grad.item() == pytest.approx(0.25 * LN2 + 0.125)


def test_quality_focal_loss_of_extreme_logits():
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = quality_focal_loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert loss.tolist() == [1e4, 0, 0, 1e4]
    loss.sum().backward()
    assert logits.grad.isfinite().all()


# ---- distribution focal loss


def test_distribution_focal_loss_by_hand():
    # probabilities 1/8, 2/8, 1/8, 4/8
    logits = torch.tensor([1.0, 2, 1, 4]).log().expand(4, 4)
    ln = [math.log(8), math.log(4), math.log(8), math.log(2)]
    found = distribution_focal_loss(logits, torch.tensor([0.0, 1.0, 1.25, 2.5]))
    expected = [ln[0], ln[1], 0.75 * ln[1] + 0.25 * ln[2], 0.5 * ln[2] + 0.5 * ln[3]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_targets_stay_between_two_bins():
    """The last of 4 bins is 3: a target is at most 2.9, and at least 0."""
    logits = random(4).expand(4, 4)
    loss = distribution_focal_loss(logits, torch.tensor([-7.0, 0.0, 2.9, 300.0]))
    torch.testing.assert_close(loss[0], loss[1])
    torch.testing.assert_close(loss[2], loss[3])
    p = slow_softmax(logits[0].tolist())
    assert loss[3].item() == pytest.approx(-(0.1 * math.log(p[2]) + 0.9 * math.log(p[3])))


def test_distribution_focal_loss_equals_loops():
    logits, targets = random(6, 4, 17) * 3, torch.rand(6, 4) * 17
    expected = [[0.0] * 4 for _ in range(6)]
    for i in range(6):
        for j in range(4):
            p = slow_softmax(logits[i, j].double().tolist())
            t = min(targets[i, j].item(), 15.9)
            left = math.floor(t)
            expected[i][j] = -(
                (left + 1 - t) * math.log(p[left]) + (t - left) * math.log(p[left + 1])
            )
    torch.testing.assert_close(
        distribution_focal_loss(logits, targets), torch.tensor(expected), rtol=1e-5, atol=1e-5
    )


def test_distribution_focal_loss_is_least_at_its_target():
    """With the two bins at their shares, the gradient vanishes."""
    logits = torch.tensor([0.0, 3.0, 1.0, 0.0]).log().clamp(min=-99).requires_grad_()
    distribution_focal_loss(logits, torch.tensor(1.25)).backward()
    assert logits.grad.abs().max() < 1e-6
    assert integral(logits).item() == pytest.approx(1.25)
