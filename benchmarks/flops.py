"""Arithmetic of a training step, counted by torch's FLOP counter with two of its gaps closed.

A multiply-add counts as two. Element-wise work, norms, NMS and data movement count as nothing, so a
ratio of counts is what a step would cost if multiplications were all that mattered.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torchvision  # noqa: F401  (its operators are in torch.ops once it is imported)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def _conv(cells: int, images: int, weight: torch.Size) -> int:
    """Of one pass: the weight (C_out, C_in / groups, kernel...) is applied once a cell."""
    return 2 * images * cells * math.prod(weight)


def _conv_backward(
    grad, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, mask, **_
) -> int:
    # torch's own formula counts the weight gradient of a grouped convolution `groups` times too
    # often. Each of the two gradients takes exactly the multiply-adds of the forward pass.
    cells = math.prod((x if transposed else grad)[2:])
    return _conv(cells, grad[0], weight) * (mask[0] + mask[1])


def _deform_conv(x, weight, *_, out_shape, **__) -> int:
    # torch does not know it. Bilinear sampling is element-wise work and not counted.
    return _conv(math.prod(out_shape[2:]), out_shape[0], weight)


def _deform_conv_backward(grad, x, weight, *_, **__) -> int:
    return 2 * _conv(math.prod(grad[2:]), grad[0], weight)


def flop_counter() -> FlopCounterMode:
    """A counter that knows grouped and deformable convolutions, forward and backward."""
    formulas = {
        torch.ops.aten.convolution_backward: _conv_backward,
        torch.ops.torchvision.deform_conv2d: _deform_conv,
        torch.ops.torchvision._deform_conv2d_backward: _deform_conv_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def count_step(
    losses: Callable[[], dict[str, Tensor]], autocast: AbstractContextManager | None = None
) -> tuple[int, int]:
    """FLOPs of the forward pass, and of forward and backward together.

    Args:
        losses: runs the forward pass and returns loss name -> scalar.
    """
    with flop_counter() as counter:
        with autocast or nullcontext():
            total = sum(losses().values())
        forward = counter.get_total_flops()
        total.backward()
        return forward, counter.get_total_flops()
