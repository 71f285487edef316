"""How far two feature maps are apart once every channel of every image is standardised."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["instance_normalize", "squared_distance"]

_EPS = 1e-5


def instance_normalize(x: Tensor, eps: float = _EPS) -> Tensor:
    """Gives every channel of every image zero mean and unit (biased) variance over its cells.

    A map of a single cell becomes zero, which is what the formula says.

    Args:
        x: (N, C, H, W), any floating dtype.

    Returns:
        (N, C, H, W), float32 (float64 for float64).

    >>> instance_normalize(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2), eps=0).tolist()
    [[[[-1.0, 1.0]]]]
    """
    x = _at_least_float32(x)
    if x.shape[2:].numel() == 1:
        return x - x  # layer_norm leaves rounding errors, multiplied by eps ** -0.5
    return F.layer_norm(x, x.shape[2:], eps=eps)


def squared_distance(x: Tensor, z: Tensor, eps: float = _EPS) -> Tensor:
    """``((instance_normalize(x) - instance_normalize(z)) ** 2).sum()``.

    Keeps nothing but its inputs for the backward pass, where plain autograd would keep five maps
    in float32: both inputs, both standardised maps and their difference. They are standardised
    again there, by the kernels of layer norm.

    Args:
        x, z: (N, C, H, W), any floating dtype.

    Returns:
        scalar, float32 (float64 for float64).

    >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    >>> round(squared_distance(x, -x).item(), 3)
    8.0
    """
    return _SquaredDistance.apply(x, z, eps)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, eps):
        ctx.save_for_backward(x, z)
        ctx.eps = eps
        return (instance_normalize(x, eps) - instance_normalize(z, eps)).square_().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        maps = ctx.saved_tensors
        wide = [_at_least_float32(x) for x in maps]
        cells = wide[0].shape[2:]
        if cells.numel() == 1:
            return *(torch.zeros_like(x) for x in maps), None
        # standardised map, mean and inverse deviation of each side
        normal = [torch.native_layer_norm(x, cells, None, None, ctx.eps) for x in wide]
        pull = (normal[0][0] - normal[1][0]).mul_(2 * grad)
        gradients = [
            torch.ops.aten.native_layer_norm_backward(
                sign * pull, x, cells, mean, rstd, None, None, [True, False, False]
            )[0].to(original.dtype)
            if needed
            else None
            for sign, x, (_, mean, rstd), original, needed in zip(
                (1, -1), wide, normal, maps, ctx.needs_input_grad[:2], strict=True
            )
        ]
        return *gradients, None
