"""Feature maps as one number a cell: how far the channels stand out there."""

import numpy as np
import torch
from torch import Tensor


def feature_energy(features: Tensor) -> np.ndarray:
    """Where a feature map stands out: root mean square over channels, each standardised over cells.

    Standardised as LGD's loss compares them, so that a few loud channels do not drown the others.

    Args:
        features: (C, H, W).

    Returns:
        (H, W) in [0, 1], from the 1st to the 99th percentile.
    """
    x = features.float()
    var, mean = torch.var_mean(x, dim=(1, 2), keepdim=True, correction=0)
    energy = ((x - mean) / (var + 1e-5).sqrt()).square().mean(0).sqrt().cpu().numpy()
    low, high = np.percentile(energy, [1, 99])
    return np.clip((energy - low) / max(high - low, 1e-9), 0, 1)
