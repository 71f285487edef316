"""A tower of 3x3 convolutions, computed only in the cells that somebody will look at.

The box losses of RetinaNet read the predicted deltas of positive anchors alone, which lie in few of
the cells. Each layer below is evaluated where the next one reads it; what is read is what the dense
tower gives, up to the rounding of float sums.

Layout: the cells of all levels and images in one list of P rows, every map with a border of one
cell of zeros, so that a neighbour is a constant number of rows away and zero padding needs no code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_d2.modeling.sparse_backward import is_plain_conv3x3

__all__ = [
    "SparsePlan",
    "cells_with_objects",
    "is_sparse_tower",
    "plan_sparse_tower",
    "run_sparse_tower",
]

# Gathering costs about as much as multiplying once half of the cells are wanted.
_DENSE_SHARE = 0.5


def is_sparse_tower(tower: nn.Module) -> bool:
    """Whether a tower is 3x3 convolutions and ReLUs alone.

    A norm over the map (GN), or over the batch, needs all cells.

    >>> conv = nn.Conv2d(8, 8, 3, padding=1)
    >>> is_sparse_tower(nn.Sequential(conv, nn.ReLU()))
    True
    >>> is_sparse_tower(nn.Sequential(conv, nn.GroupNorm(2, 8), nn.ReLU()))
    False
    """
    if not isinstance(tower, nn.Sequential) or not len(tower):
        return False
    return all(
        (type(layer) is nn.Conv2d and is_plain_conv3x3(layer)) or type(layer) is nn.ReLU
        for layer in tower
    )


def cells_with_objects(
    labels: Sequence[Tensor], num_classes: int, sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """The cells in which an anchor learns an object.

    Args:
        labels: (R,) of each image; R anchors level by level, cell by cell, A a cell. Labels from
            0 to ``num_classes - 1`` are objects.
        num_classes: number of foreground classes.
        sizes: (h, w) of each level.

    Returns:
        one bool (N, h, w) a level.
    """
    stacked = torch.stack(list(labels))
    cells = sum(h * w for h, w in sizes)
    positive = ((stacked >= 0) & (stacked < num_classes)).view(len(stacked), cells, -1).any(2)
    return [
        level.view(-1, h, w)
        for level, (h, w) in zip(
            positive.split([h * w for h, w in sizes], dim=1), sizes, strict=True
        )
    ]


@dataclass(frozen=True)
class SparsePlan:
    """Which cells each convolution of a tower reads and writes; good for any features of its size.

    Attributes:
        sizes: (h, w) of each level.
        num_cells: P.
        first, last: (n,) the cells that the first convolution reads, and that the last one writes.
        steps: of each convolution, its neighbours forward and backward, see `_GatheredConv`.
    """

    sizes: list[tuple[int, int]]
    num_cells: int
    first: Tensor
    last: Tensor
    steps: list[tuple[Tensor, Tensor]]


def plan_sparse_tower(num_convs: int, needed: Sequence[Tensor]) -> SparsePlan | None:
    """What a tower has to compute.

    Args:
        num_convs: number of its convolutions.
        needed: bool (N, h, w) of each level, the cells in which its output is read.

    Returns:
        None where so many cells are needed that the dense tower is the cheaper one.
    """
    sizes = [tuple(x.shape[-2:]) for x in needed]
    inside = _bordered([torch.ones_like(x) for x in needed])
    around = _around(len(needed[0]), sizes, inside.device)
    masks = [_bordered(needed)]  # what the tower returns; before it, what each layer reads
    for _ in range(num_convs):
        masks.insert(0, masks[0][around].any(1) & inside)
    stacked = torch.stack(masks)
    counts = stacked.sum(1).tolist()
    if sum(counts[1:]) > _DENSE_SHARE * num_convs * sum(x.numel() for x in needed):
        return None
    cells = stacked.nonzero()[:, 1].split(counts)
    steps = [
        (_rows_around(after, before, around), _rows_around(before, after, around))
        for before, after in pairwise(cells)
    ]
    return SparsePlan(sizes, len(inside), cells[0], cells[-1], steps)


def run_sparse_tower(
    tower: nn.Sequential, features: Sequence[Tensor], plan: SparsePlan
) -> list[Tensor]:
    """``[tower(x) for x in features]`` in the cells that are needed, zero in all others.

    Args:
        tower: see :func:`is_sparse_tower`.
        features: (N, C, h, w) of each level.

    Returns:
        (N, C', h, w) of each level.
    """
    rows = torch.cat([F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 2) for x in features])
    rows = rows.index_select(0, plan.first)
    steps = iter(plan.steps)
    for layer in tower:
        is_conv = isinstance(layer, nn.Conv2d)
        rows = _gathered_conv(rows, layer, *next(steps)) if is_conv else layer(rows)
    full = rows.new_zeros(plan.num_cells, rows.shape[1]).index_copy(0, plan.last, rows)
    images = len(features[0])
    parts = full.split([images * (h + 2) * (w + 2) for h, w in plan.sizes])
    return [
        part.view(images, h + 2, w + 2, -1)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        for part, (h, w) in zip(parts, plan.sizes, strict=True)
    ]


def _gathered_conv(rows: Tensor, conv: nn.Conv2d, around: Tensor, around_back: Tensor) -> Tensor:
    """A convolution of listed cells, in the dtype of autocast where that is on."""
    kernel = conv.weight.permute(2, 3, 1, 0).flatten(0, 1)  # (9, C, C')
    bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, kernel, bias = rows.to(dtype), kernel.to(dtype), bias.to(dtype)
    return _GatheredConv.apply(rows, kernel, bias, around, around_back)


class _GatheredConv(torch.autograd.Function):
    """Gathers the 3x3 neighbourhoods of the wanted cells, and multiplies.

    The neighbourhoods are gathered again for the backward pass: nine times the features would be
    much to keep. Gradients are gathered, too, not scattered: without atomics, so they are the same
    each time.
    """

    @staticmethod
    def forward(ctx, rows, kernel, bias, around, around_back):
        """
        Args:
            rows: (n, C) of the cells that are read.
            kernel: (9, C, C').
            bias: (C',).
            around: (m, 9), the rows around each wanted cell; n where there is none.
            around_back: (n, 9), the wanted cells around each row; m where there is none.

        Returns:
            (m, C').
        """
        ctx.save_for_backward(rows, kernel, around, around_back)
        return torch.addmm(bias, _gather(rows, around), kernel.flatten(0, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, kernel, around, around_back = ctx.saved_tensors
        grad_rows = grad_kernel = None
        if ctx.needs_input_grad[0]:
            # a cell reaches its neighbour by the step opposite to the one that reads it
            turned = kernel.flip(0).transpose(1, 2).flatten(0, 1)
            grad_rows = _gather(grad, around_back) @ turned
        if ctx.needs_input_grad[1]:
            grad_kernel = (_gather(rows, around).t() @ grad).view_as(kernel)
        return grad_rows, grad_kernel, grad.sum(0), None, None


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """(n, C) rows, (m, 9) of numbers up to n -> (m, 9 * C); row n is zero."""
    return F.pad(rows, (0, 0, 0, 1))[index].flatten(1)


def _bordered(maps: Sequence[Tensor]) -> Tensor:
    """Bool (N, h, w) of each level -> (P,)."""
    return torch.cat([F.pad(x, (1, 1, 1, 1)).flatten() for x in maps])


def _around(num_images: int, sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(P, 9): the 3x3 neighbourhood of each cell, in the order of a kernel's weights.

    Those of a border are meaningless, and read by nobody.
    """
    areas = [num_images * (h + 2) * (w + 2) for h, w in sizes]
    lines = torch.cat(
        [torch.full((n,), w + 2, device=device) for n, (_, w) in zip(areas, sizes, strict=True)]
    )
    down, right = torch.cartesian_prod(*[torch.arange(-1, 2, device=device)] * 2).t()
    cells = torch.arange(len(lines), device=device)
    return (cells[:, None] + lines[:, None] * down + right).clamp_(0, len(lines) - 1)


def _rows_around(cells: Tensor, among: Tensor, around: Tensor) -> Tensor:
    """(n, 9): where the neighbours of ``cells`` stand in ``among``; len(among) if they do not."""
    slots = torch.full((len(around),), len(among), device=cells.device)
    slots[among] = torch.arange(len(among), device=cells.device)
    return slots[around[cells]]
