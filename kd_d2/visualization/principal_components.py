"""Feature maps as colours: their first three principal components over the cells.

Symbols: C channels, n = h * w cells of one level of one image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_NUM = 3  # red, green, blue
_NEGLIGIBLE = 1e-9  # share of the variance below which a component is rounding noise
_PERCENTILES = (1, 99)


@dataclass
class ColorBasis:
    """Three directions in channel space, and the range of each that is spread over a colour.

    Attributes:
        loadings: (3, C), orthonormal rows; zeros where there is no such component.
        low, high: (3,) the values that become 0 and 1.
    """

    loadings: Tensor
    low: Tensor
    high: Tensor


def standardize_over_cells(features: Tensor) -> Tensor:
    """Gives each channel zero mean and unit variance, as LGD's loss compares features.

    Args:
        features: (C, h, w), any floating dtype and device.

    Returns:
        (C, n) in float64 on the CPU; a constant channel becomes zero.

    Raises:
        ValueError: for values that are not finite.

    >>> x = torch.tensor([[[1.0, 3.0]], [[5.0, 5.0]]])
    >>> standardize_over_cells(x).round(decimals=3).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    x = features.detach().cpu().double().flatten(1)
    if not torch.isfinite(x).all():
        raise ValueError("A feature map has values that are not finite: the model has diverged.")
    var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(var + 1e-5)


def fit_basis(features: Tensor) -> ColorBasis:
    """The first three principal components of one map, strongest first.

    A component's sign is chosen so that its largest loading is positive: the same features have the
    same colours on every machine.

    Args:
        features: (C, h, w).
    """
    x = standardize_over_cells(features)
    channels, cells = x.shape
    # The smaller of the two Gram matrices has all the variances there are.
    if channels <= cells:
        values, vectors = torch.linalg.eigh(x @ x.T)
        loadings = vectors.T
    else:
        values, vectors = torch.linalg.eigh(x.T @ x)
        loadings = (x @ vectors).T
    values, loadings = values.flip(0)[:_NUM], loadings.flip(0)[:_NUM]
    real = values > _NEGLIGIBLE * x.square().sum().clamp(min=1e-12)
    loadings = torch.nn.functional.normalize(loadings, dim=1) * real[:, None]
    loadings = _with_signs(loadings)
    loadings = torch.nn.functional.pad(loadings, (0, 0, 0, _NUM - len(loadings)))
    low, high = np.percentile((loadings @ x).numpy(), _PERCENTILES, axis=1)
    return ColorBasis(loadings, torch.from_numpy(low), torch.from_numpy(high))


def _with_signs(loadings: Tensor) -> Tensor:
    size = loadings.abs()
    # The first of those that are largest up to rounding, which differs between machines.
    largest = (size >= size.amax(1, keepdim=True) * (1 - 1e-6)).int().argmax(1)
    sign = loadings.gather(1, largest[:, None]).sign()
    return loadings * torch.where(sign == 0, 1.0, sign)


def to_colors(features: Tensor, basis: ColorBasis) -> tuple[np.ndarray, float]:
    """Paints a map in a basis fitted on itself or on another map of as many channels.

    Args:
        features: (C, h, w).

    Returns:
        (h, w, 3) in [0, 1], 1/2 for a component that does not exist; and the share of the map's
        variance that lies in the three directions.
    """
    x = standardize_over_cells(features)
    values = basis.loadings @ x
    total = x.square().sum()
    share = float(values.square().sum() / total) if total > 0 else 0.0
    span = (basis.high - basis.low)[:, None]
    scaled = (values - basis.low[:, None]) / span.clamp(min=1e-9)
    scaled = torch.where(span > 1e-9, scaled.clamp(0, 1), 0.5)
    return scaled.T.reshape(*features.shape[1:], _NUM).numpy(), share
