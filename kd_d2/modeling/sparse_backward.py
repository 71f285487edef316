"""A 3x3 convolution whose backward pass reads only the cells that have a gradient.

The losses of a region proposal network read a few hundred sampled anchors an image, and the
proposals are made without gradient. So of all cells of its hidden convolution, next to none has a
gradient that is not exactly zero, yet the dense backward pass costs twice the forward pass.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["is_plain_conv3x3", "sparse_backward_conv"]

# Gathering costs about as much as the dense pass once half of the cells have a gradient.
_DENSE_SHARE = 0.5


def is_plain_conv3x3(layer: nn.Module) -> bool:
    """Whether the arithmetic of a layer is a 3x3 convolution with stride 1, padding 1, one group.

    >>> is_plain_conv3x3(nn.Conv2d(8, 8, 3, padding=1)), is_plain_conv3x3(nn.Conv2d(8, 8, 1))
    (True, False)
    """
    if not isinstance(layer, nn.Conv2d):
        return False
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and layer.padding_mode == "zeros"


def sparse_backward_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``conv(x)`` without norm and activation; only the backward pass is another.

    Args:
        x: (N, C, H, W).
        conv: see :func:`is_plain_conv3x3`.

    Returns:
        (N, C', H, W), in the dtype of autocast where that is on.
    """
    weight = conv.weight
    bias = conv.bias if conv.bias is not None else weight.new_zeros(conv.out_channels)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    return _SparseBackwardConv.apply(x, weight, bias)


class _SparseBackwardConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        image, row, column = (grad != 0).any(1).nonzero(as_tuple=True)
        if len(image) > _DENSE_SHARE * grad[:, 0].numel():
            return torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, needs
            )
        grad = grad[image, :, row, column]  # (n, C')
        # Rows and columns of the 3x3 neighbourhood in a map with a border of one cell.
        down, right = torch.cartesian_prod(*[torch.arange(3, device=x.device)] * 2).t()
        around = image[:, None], row[:, None] + down, column[:, None] + right
        grad_x = grad_weight = None
        if needs[0]:
            kernel = weight.permute(2, 3, 0, 1).flatten(0, 1)  # (9, C', C)
            n, c, h, w = x.shape
            bordered = x.new_zeros(n, h + 2, w + 2, c)
            bordered.index_put_(around, torch.einsum("no,koc->nkc", grad, kernel), accumulate=True)
            grad_x = bordered[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        if needs[1]:
            cells = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)[around]  # (n, 9, C)
            grad_weight = (grad.t() @ cells.flatten(1)).view(len(weight), 3, 3, -1)
            grad_weight = grad_weight.permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad.sum(0)
