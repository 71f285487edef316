"""How far two feature maps are apart once every channel of every image is standardised."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    return _standardise(x, eps)[0]


def squared_distance(x: Tensor, z: Tensor, eps: float = _EPS) -> Tensor:
    """``((instance_normalize(x) - instance_normalize(z)) ** 2).sum()``.

    Keeps nothing but its inputs for the backward pass, where plain autograd would keep five maps
    in float32: both inputs, both standardised maps and their difference.

    Args:
        x, z: (N, C, H, W), any floating dtype.

    Returns:
        scalar, float32 (float64 for float64).

    >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    >>> round(squared_distance(x, -x).item(), 3)
    8.0
    """
    return _SquaredDistance.apply(x, z, eps)


def _standardise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Standardised ``x``, and the factors (N, C, 1, 1) by which its differences grew."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    factor = (var + eps).rsqrt()
    return (x - mean).mul_(factor), factor


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, z, eps):
        ctx.save_for_backward(x, z)
        ctx.eps = eps
        return (_standardise(x, eps)[0] - _standardise(z, eps)[0]).square_().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, z = ctx.saved_tensors
        normal_x, factor_x = _standardise(x, ctx.eps)
        normal_z, factor_z = _standardise(z, ctx.eps)
        pull = (normal_x - normal_z).mul_(2 * grad)
        grad_x = grad_z = None
        if ctx.needs_input_grad[0]:
            grad_x = _through_standardising(pull, normal_x, factor_x).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_z = -_through_standardising(pull, normal_z, factor_z).to(z.dtype)
        return grad_x, grad_z, None


def _through_standardising(grad: Tensor, normal: Tensor, factor: Tensor) -> Tensor:
    """Gradient of the standardised map -> gradient of the map: no mean, no part along itself."""
    along = (grad * normal).mean(dim=(2, 3), keepdim=True)
    return (grad - grad.mean(dim=(2, 3), keepdim=True)).addcmul_(normal, along, value=-1) * factor
