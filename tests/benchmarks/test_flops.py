import pytest
import torch
from flops import count_step, flop_counter
from torch import nn
from torchvision.ops import deform_conv2d


def count(function):
    with flop_counter() as counter:
        function()
        return counter.get_total_flops()


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_costs_three_forward_passes(groups):
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=groups, bias=False)
    x = torch.randn(2, 8, 10, 10, requires_grad=True)
    forward = 2 * 2 * (16 * 8 // groups * 9) * 100  # 2 per multiply-add, 2 images, 100 cells
    assert count(lambda: conv(x)) == forward
    assert count(lambda: conv(x).sum().backward()) == 3 * forward


def test_gradients_that_nobody_needs_cost_nothing():
    conv = nn.Conv2d(8, 16, 1, bias=False)
    forward = 2 * 16 * 8 * 100
    assert count(lambda: conv(torch.randn(1, 8, 10, 10)).sum().backward()) == 2 * forward
    conv.requires_grad_(False)
    x = torch.randn(1, 8, 10, 10, requires_grad=True)
    assert count(lambda: conv(x).sum().backward()) == 2 * forward


def test_a_strided_convolution_is_counted_at_its_output_cells():
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    forward = 2 * 3 * 4 * 9 * 25
    assert count(lambda: conv(x).sum().backward()) == 3 * forward


def test_a_transposed_convolution_is_counted_at_its_input_cells():
    conv = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False)
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    forward = 2 * 3 * 4 * 4 * 25
    assert count(lambda: conv(x).sum().backward()) == 3 * forward


@pytest.mark.parametrize("groups", [1, 2])
def test_a_deformable_convolution_counts_like_a_plain_one(groups):
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    weight = torch.randn(16, 8 // groups, 3, 3, requires_grad=True)
    offset = torch.randn(2, 18, 6, 6, requires_grad=True)
    forward = 2 * 2 * weight.numel() * 36
    assert count(lambda: deform_conv2d(x, offset, weight, padding=1)) == forward
    assert (
        count(lambda: deform_conv2d(x, offset, weight, padding=1).sum().backward()) == 3 * forward
    )


def test_a_step_is_counted_forward_and_in_all():
    layer = nn.Linear(4, 2, bias=False)
    x = torch.randn(3, 4)  # needs no gradient: the backward pass is the weight's alone
    forward, total = count_step(lambda: {"a": layer(x).sum(), "b": layer(x).mean()})
    assert forward == 2 * (2 * 3 * 4 * 2)
    assert total == 2 * forward
