"""The distance of standardised maps: its value, its gradients, and what it keeps."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from kd_d2.projects.lgd import instance_normalize
from kd_d2.projects.lgd.standardised_distance import squared_distance


def maps(*shape, seed=0, dtype=torch.float32):
    x, z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (3 * x + 2).requires_grad_(), z.requires_grad_()


def spelled_out(x, z):
    return (instance_normalize(x) - instance_normalize(z)).square().sum()


def test_gradients_of_both_sides_are_right():
    x, z = maps(2, 3, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(squared_distance, (x, z))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 4, 1, 3), (2, 3, 1, 1)])
def test_is_the_formula(shape):
    x, z = maps(*shape)
    ours, expected = squared_distance(x, z), spelled_out(x, z)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(ours, (x, z)), torch.autograd.grad(expected, (x, z)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_equal_up_to_scale_and_shift_is_no_distance():
    x, _ = maps(2, 3, 6, 6)
    assert squared_distance(x, 2 * x + 1).item() == pytest.approx(0, abs=1e-3)
    assert squared_distance(x, x).item() == 0


def test_a_constant_channel_has_no_gradient_of_its_own_shape():
    x = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    squared_distance(x, torch.randn(1, 1, 4, 4)).backward()
    assert x.grad.isfinite().all() and abs(x.grad.sum()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, z = (t.detach().to(dtype) for t in maps(2, 3, 6, 6))
    x.requires_grad_()
    loss = squared_distance(x, z)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, spelled_out(x.float(), z.float()))
    loss.backward()
    assert x.grad.dtype == dtype


def test_keeps_its_inputs_and_nothing_else():
    x, z = maps(2, 3, 8, 8)
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        squared_distance(x, z.detach())
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), z.data_ptr()}
