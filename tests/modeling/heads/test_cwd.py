"""CWD against a loop over channels, and what it is blind to."""

import math

import pytest
import torch
from head_cases import features, shapes, view

from kd_d2.modeling.heads.cwd import CWD, cwd_loss


def slow_loss(student, teacher, t):
    def distribution(cells):
        weights = [math.exp(v / t) for v in cells]
        return [w / sum(weights) for w in weights]

    divergences = []
    for x, y in zip(
        student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), strict=True
    ):
        q, p = distribution(x.tolist()), distribution(y.tolist())
        divergences.append(sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    return t * t * sum(divergences) / len(divergences)


@pytest.mark.parametrize("t", [1.0, 4.0, 0.5])
def test_equals_a_loop_over_the_channels(t):
    x, y = torch.randn(2, 2, 3, 4, 5)
    assert cwd_loss(x, y, t).item() == pytest.approx(slow_loss(x, y, t), rel=1e-5)


def test_by_hand():
    # (2/3, 1/3) against (1/2, 1/2); a second channel that agrees halves the mean
    student = torch.zeros(1, 2, 1, 2)
    teacher = torch.tensor([[2.0, 1.0], [5.0, 5.0]]).log().view(1, 2, 1, 2)
    expected = (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 2
    assert cwd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_channels_level_does_not_matter_and_its_magnitude_does():
    x, y = torch.randn(2, 2, 3, 4, 5)
    offsets = torch.tensor([-20.0, 0.0, 7.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(cwd_loss(x, y + offsets), cwd_loss(x, y), rtol=1e-4, atol=1e-6)
    assert cwd_loss(x, x) == pytest.approx(0, abs=1e-6) and cwd_loss(x, 2 * x) > 0.1


def test_gradient_is_the_difference_of_the_distributions():
    x, y = torch.randn(2, 2, 3, 4, 5)
    x.requires_grad_()
    cwd_loss(x, y, 2.0).backward()
    q, p = (v.detach().flatten(2).div(2).softmax(-1).view_as(v) for v in (x, y))
    torch.testing.assert_close(x.grad, 2 * (q - p) / 6)


def test_a_level_of_one_cell_says_nothing():
    assert cwd_loss(torch.randn(2, 3, 1, 1), torch.randn(2, 3, 1, 1)) == 0


def test_head_sums_levels_and_weighs():
    head = CWD(student_shapes=shapes(), teacher_shapes=shapes(), weight=3.0, temperature=2.0)
    x, y = features(shapes()), features(shapes(), seed=1)
    loss = head(view(x), view(y), None)["loss_cwd"]
    torch.testing.assert_close(
        loss, 3 * (cwd_loss(x["p0"], y["p0"], 2) + cwd_loss(x["p1"], y["p1"], 2))
    )
    assert not list(head.parameters())
