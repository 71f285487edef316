"""PKD: imitation of channel-standardised FPN features (arXiv 2207.02039)."""

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.adapters import FeatureImitation


def standardize_channels(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Gives every channel zero mean and unit variance over the batch and all cells.

    Args:
        x: (N, C, H, W), any floating dtype.
        eps: added to the variance.

    Returns:
        (N, C, H, W) in float32; a constant channel becomes zero.

    >>> standardize_channels(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)).flatten().tolist()
    [-1.0, 1.0]
    """
    x = x.float()
    var, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
    # Not std + eps: the square root of a variance of zero has no finite gradient.
    return (x - mean) * torch.rsqrt(var + eps)


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of standardised features: 1 - Pearson's r, averaged.

    Args:
        student, teacher: (N, C, H, W).

    >>> x = torch.randn(2, 3, 4, 4)
    >>> round(pkd_loss(x, 5 * x + 1).item(), 4), round(pkd_loss(x, -x).item(), 4)
    (0.0, 2.0)
    """
    return F.mse_loss(standardize_channels(student), standardize_channels(teacher)) / 2


@DISTILL_HEAD_REGISTRY.register()
class PKD(FeatureImitation):
    """Features of equal stride are compared, level by level, without masks or parameters.

    Standardising removes the difference in magnitude between detectors, channels and levels, so
    the same loss serves pairs of different kinds.
    """

    @configurable
    def __init__(self, *, weight: float = 10.0, **features):
        """
        Args:
            weight: factor of the sum over levels.
            features: arguments of :class:`FeatureImitation`.
        """
        super().__init__(**features)
        self.weight = weight

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_pkd": scalar}``."""
        loss = sum(pkd_loss(x, y) for x, y in self.feature_pairs(student, teacher))
        return {"loss_pkd": self.weight * loss}
