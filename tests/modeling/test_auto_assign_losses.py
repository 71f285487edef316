"""The functions of AutoAssign's losses against hand-computed values."""

import math

import pytest
import torch

from kd_d2.modeling.detectors.auto_assign_losses import (
    centre_loss,
    centre_prior,
    cross_entropy,
    negative_loss,
    negative_weights,
    positive_loss,
)


def prior_of(points, strides, box, mean=(0.0, 0.0), sigma=(1.0, 1.0), inside=None):
    """The prior of one object of one image."""
    points = torch.tensor(points, dtype=torch.float32)
    inside = torch.ones(1, 1, len(points)).bool() if inside is None else inside
    one = (torch.tensor(x, dtype=torch.float32)[None, None] for x in (box, mean, sigma))
    return centre_prior(points, torch.tensor(strides), *one, inside)[0, 0]


# ---- prior


def test_prior_by_hand():
    # centre (20, 20); the last point is one stride left and two below, in strides of 16
    points, strides = [[20, 20], [28, 20], [4, 52]], [8.0, 8.0, 16.0]
    prior = prior_of(points, strides, (0, 0, 40, 40))
    assert prior.tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-2.5)])
    prior = prior_of(points, strides, (0, 0, 40, 40), mean=(1, 0), sigma=(2, 0.5))
    # distances from the mean: -1, 0; 0, 0; -2, 2
    expected = [math.exp(-1 / 8), 1, math.exp(-4 / 8 - 4 / 0.5)]
    assert prior.tolist() == pytest.approx(expected)


def test_prior_is_zero_outside_without_gradient():
    inside = torch.tensor([[[True, False]]])
    mean = torch.zeros(1, 1, 2, requires_grad=True)
    prior = centre_prior(
        torch.tensor([[8.0, 8], [9, 9]]),
        torch.tensor([8.0, 8]),
        torch.tensor([[[0.0, 0, 16, 16]]]),
        mean,
        torch.ones(1, 1, 2),
        inside,
    )
    assert prior.tolist() == [[[1, 0]]]
    prior[..., 1].sum().backward()
    assert not mean.grad.any()


# ---- positive


def test_positive_loss_by_hand():
    confidence = torch.tensor([0.2, 0.6, 0.9])
    prior = torch.tensor([1.0, 0.5, 0.0])
    weights = [math.exp(0.6), 0.5 * math.exp(1.8)]
    mean = (weights[0] * 0.2 + weights[1] * 0.6) / sum(weights)
    assert positive_loss(confidence, prior).item() == pytest.approx(-math.log(mean))


def test_positive_loss_has_gradients_through_its_weights():
    confidence = torch.tensor([0.2, 0.6], dtype=torch.float64, requires_grad=True)
    prior = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(positive_loss, (confidence, prior))
    positive_loss(confidence, prior).backward()
    assert prior.grad[1] < 0 < prior.grad[0]  # more of the better location


def test_object_without_a_location_has_a_finite_gradient():
    confidence, prior = (torch.zeros(4, requires_grad=True) for _ in range(2))
    loss = positive_loss(confidence + 0.5, prior.where(torch.zeros(4).bool(), 0.0))
    assert loss == 100
    (loss * 2.0**16).backward()  # as a gradient scaler would
    assert not confidence.grad.any() and not prior.grad.any()


# ---- negative


def test_negative_weights_by_hand():
    # 1 / (1 - IoU): 1, 2, 4, 10, 1
    iou = torch.tensor([[0.0, 0.5, 0.75, 0.9, 0.0]])
    inside = torch.tensor([[[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]]).bool()
    weights = negative_weights(iou, inside, torch.tensor([[0, 2, 1]]), 4)
    expected = [[1, 2 / 3, 0, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]
    torch.testing.assert_close(weights[0], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_the_last_object_of_a_class_rules(order):
    """Three objects of one class, whose normalised values differ where they overlap."""
    iou = torch.tensor([[0.0, 0.5, 0.75, 0.9]])
    inside = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 1]]).bool()
    own = [[1, 2 / 3, 0, 1], [1, 1, 0.75, 0], [1, 1, 1, 0]]
    expected = [1.0] * 4
    for b in order:
        expected = [w if i else e for e, w, i in zip(expected, own[b], inside[b], strict=True)]
    weights = negative_weights(iou, inside[list(order)][None], torch.zeros(1, 3).long(), 1)
    torch.testing.assert_close(weights[0, 0], torch.tensor(expected, dtype=torch.float32))


def test_perfect_boxes_are_no_background():
    iou = torch.tensor([[1.0, 0.0]])
    weights = negative_weights(iou, torch.ones(1, 1, 2).bool(), torch.zeros(1, 1).long(), 1)
    assert weights.tolist() == [[[0, 1]]]
    # all equal: the range is empty, and nothing is background
    weights = negative_weights(
        iou[:, [0, 0]], torch.ones(1, 1, 2).bool(), torch.zeros(1, 1).long(), 1
    )
    assert weights.tolist() == [[[0, 0]]]


def test_negative_loss_by_hand():
    loss = negative_loss(torch.tensor([0.5, 0.8, 0.9]), torch.tensor([1.0, 0.5, 0.0]))
    expected = 0.25 * math.log(2) - 0.16 * math.log(0.6)
    assert loss.item() == pytest.approx(expected)


# ---- centre


def test_centre_loss_by_hand():
    prior = torch.tensor([[[0.5, 0.3], [0.2, 0.6]], [[0.0, 0.0], [0.0, 0.0]], [[0.5, 0], [0, 0]]])
    loss = centre_loss(prior, prior > 0, torch.tensor([2, 1, 1]))
    assert loss.item() == pytest.approx((2 / 1.6 + 0 + 1 / 0.5) / 3)
    # inside, but the prior has vanished
    loss = centre_loss(torch.zeros(1, 1, 1), torch.ones(1, 1, 1).bool(), torch.tensor([1]))
    assert loss.item() == pytest.approx(1e12)


# ---- cross entropy


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_cross_entropy_is_that_of_pytorch(target):
    x = torch.tensor([0.0, 1e-38, 1e-5, 0.3, 1 - 1e-6, 1.0], requires_grad=True)
    y = x.detach().clone().requires_grad_()
    loss = cross_entropy(x, target)
    expected = torch.nn.functional.binary_cross_entropy(
        y, torch.full((6,), target), reduction="none"
    )
    assert torch.equal(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_cross_entropy_of_what_pytorch_refuses():
    assert cross_entropy(torch.tensor([1.0000001, float("nan")]), 1.0)[0] == 0
    assert cross_entropy(torch.tensor([0.5, float("nan")]), 0.0).isnan().tolist() == [False, True]
