"""A tower of 3x3 convolutions, computed only in the cells that somebody will look at.

The box losses of RetinaNet read the predicted deltas of positive anchors alone: on COCO those lie
in a few per cent of the cells, yet the box tower is a quarter of a training step. Each layer below
is evaluated where the next one reads it; what is read is what the dense tower gives, up to the
rounding of float sums.

Layout: the cells of all levels and images in one list of P rows, every map with a border of one
cell of zeros, so that a neighbour is a constant number of rows away and zero padding needs no code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["cells_with_objects", "is_plain_conv", "is_sparse_tower", "run_sparse_tower"]

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
    return all(is_plain_conv(layer) or type(layer) is nn.ReLU for layer in tower)


def is_plain_conv(layer: nn.Module) -> bool:
    """Whether a layer is a 3x3 convolution with stride 1, padding 1, and nothing else to it."""
    if type(layer) is not nn.Conv2d:
        return False
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and layer.padding_mode == "zeros"


def cells_with_objects(
    labels: Sequence[Tensor], num_classes: int, sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """The cells in which an anchor learns an object, and their neighbours.

    So a 3x3 prediction layer finds all it reads for a positive anchor.

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
        F.max_pool2d(level.view(-1, 1, h, w).float(), 3, stride=1, padding=1)[:, 0] > 0
        for level, (h, w) in zip(
            positive.split([h * w for h, w in sizes], dim=1), sizes, strict=True
        )
    ]


def run_sparse_tower(
    tower: nn.Sequential, features: Sequence[Tensor], needed: Sequence[Tensor]
) -> list[Tensor] | None:
    """``[tower(x) for x in features]`` in the cells that are needed, zero in all others.

    Args:
        tower: see :func:`is_sparse_tower`.
        features: (N, C, h, w) of each level.
        needed: bool (N, h, w) of each level.

    Returns:
        (N, C', h, w) of each level; None where so many cells are needed that the dense tower is
        the cheaper one.
    """
    sizes = [x.shape[-2:] for x in features]
    num_images, device = len(features[0]), features[0].device
    reach = _neighbours(num_images, sizes, device)
    inside = _bordered([torch.ones_like(x) for x in needed])
    convs = [layer for layer in tower if isinstance(layer, nn.Conv2d)]

    cells = [
        _bordered(needed).nonzero()[:, 0]
    ]  # what the tower returns, then what each layer reads
    for _ in convs:
        read = torch.zeros_like(inside)
        read[_around(cells[0], reach)] = True
        cells.insert(0, (read & inside).nonzero()[:, 0])
    if sum(map(len, cells[1:])) > _DENSE_SHARE * len(convs) * sum(x.numel() for x in needed):
        return None

    rows = torch.cat([F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 2) for x in features])
    rows = rows.index_select(0, cells[0])
    steps = zip(cells, cells[1:], strict=False)
    for layer in tower:
        if isinstance(layer, nn.Conv2d):
            before, after = next(steps)
            rows = _gathered_conv(
                rows,
                layer,
                _rows_around(after, before, len(inside), reach),
                _rows_around(before, after, len(inside), reach),
            )
        else:
            rows = layer(rows)
    full = rows.new_zeros(len(inside), rows.shape[1]).index_copy(0, cells[-1], rows)
    parts = full.split([num_images * (h + 2) * (w + 2) for h, w in sizes])
    return [
        part.view(num_images, h + 2, w + 2, -1)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        for part, (h, w) in zip(parts, sizes, strict=True)
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


def _rows_around(
    cells: Tensor, among: Tensor, num_cells: int, reach: tuple[Tensor, Tensor]
) -> Tensor:
    """(n, 9): where the neighbours of ``cells`` stand in ``among``; len(among) if they do not."""
    slots = torch.full((num_cells,), len(among), device=cells.device)
    slots[among] = torch.arange(len(among), device=cells.device)
    return slots[_around(cells, reach)]


def _bordered(maps: Sequence[Tensor]) -> Tensor:
    """Bool (N, h, w) of each level -> (P,)."""
    return torch.cat([F.pad(x, (1, 1, 1, 1)).flatten() for x in maps])


def _neighbours(
    num_images: int, sizes: Sequence[tuple[int, int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The length of a bordered line at each of the P cells, and (9, 2) steps down and right."""
    lines = torch.tensor([w + 2 for _, w in sizes], device=device)
    areas = torch.tensor([num_images * (h + 2) * (w + 2) for h, w in sizes], device=device)
    steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=device)] * 2)
    return lines.repeat_interleave(areas), steps


def _around(cells: Tensor, reach: tuple[Tensor, Tensor]) -> Tensor:
    """(n,) cells -> (n, 9): each one's 3x3 neighbourhood, in the order of a kernel's weights."""
    lines, steps = reach
    return cells[:, None] + lines[cells][:, None] * steps[:, 0] + steps[:, 1]
