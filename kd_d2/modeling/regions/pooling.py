"""RoIAlign of one level: torchvision's kernel, or matrix products where the level is small.

Shapes: R regions of N images, C channels, H x W cells, p x p bins of a pooled region.
"""

import torch
from torch import Tensor
from torchvision.ops import roi_align

from kd_d2.modeling.regions.seen import Regions

# Cells up to which matrix products are faster; the backward pass of the kernel adds up bin by bin.
_SMALL = 1024


def pool_regions(
    feature: Tensor, regions: Regions, stride: int, resolution: int, sampling_ratio: int
) -> Tensor:
    """RoIAlign with ``aligned=True``: (N, C, H, W) -> (R, C, p, p), in float32.

    In half precision boxes would be rounded to whole pixels.

    Args:
        resolution: p.
        sampling_ratio: samples of a bin in each direction; 0: as many as there are cells.
    """
    feature = feature.float()
    if sampling_ratio == 0 or feature[0, 0].numel() > _SMALL:
        return roi_align(
            feature, regions.rois(), resolution, 1 / stride, sampling_ratio, aligned=True
        )
    x1, y1, x2, y2 = (regions.boxes / stride).unbind(1)
    height, width = feature.shape[2:]
    columns = bin_weights(x1, x2, width, resolution, sampling_ratio).split(regions.counts)
    rows = bin_weights(y1, y2, height, resolution, sampling_ratio).split(regions.counts)
    pooled = [
        # one product for all regions of an image along the rows, then one for each region
        torch.einsum("rph,rchq->rcpq", of_rows, torch.einsum("chw,rqw->rchq", x, of_columns))
        for x, of_rows, of_columns in zip(feature, rows, columns, strict=True)
    ]
    return torch.cat(pooled)


def bin_weights(low: Tensor, high: Tensor, cells: int, bins: int, samples: int) -> Tensor:
    """How much each cell of an axis counts in each bin of an interval.

    Bilinear interpolation of a box is one along each of its axes, one after the other.

    Args:
        low, high: (R,), ends of the intervals in cells; the first cell is from 0 to 1.

    Returns:
        (R, bins, cells).

    >>> bin_weights(torch.tensor([0.0]), torch.tensor([3.0]), 3, 2, 1)
    tensor([[[0.7500, 0.2500, 0.0000],
             [0.0000, 0.2500, 0.7500]]])
    """
    count = bins * samples
    shares = (torch.arange(count, device=low.device) + 0.5) / count
    points = low[:, None] + (high - low)[:, None] * shares - 0.5
    inside = (points >= -1) & (points <= cells)
    points = points.clamp(0, cells - 1)
    centres = torch.arange(cells, device=low.device)
    weights = (1 - (points[..., None] - centres).abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(1, (bins, samples)).mean(2)
