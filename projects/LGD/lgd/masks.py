"""Which cells of a pyramid level belong to a box (specified to the last bit, for parity)."""

import torch
from torch import Tensor


def box_masks(boxes: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Marks the cells inside each box, for all boxes at once.

    Cell (i, j) is inside if ``|c_y - i| / height <= 1/2`` and ``|c_x - j| / width <= 1/2`` for the
    box scaled to the level, cells being points at integer positions. Nothing is rounded and there
    is no smallest size: a box between two cells has an empty mask, and so has a box without width
    (0 / 0 and x / 0 compare as false). The quotient is computed as it stands, because at the border
    it rounds differently from ``x1 <= j <= x2``.

    Args:
        boxes: (..., 4) absolute XYXY on the canvas, float32.
        canvas: (H, W) of the padded batch.
        size: (h, w) of the level.

    Returns:
        (..., h, w) of 0 and 1, float32.

    >>> box_masks(torch.tensor([8.0, 0, 23, 8]), (32, 32), (4, 4)).int().tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    columns = _inside(x1, x2, canvas[1], size[1])
    rows = _inside(y1, y2, canvas[0], size[0])
    return (rows[..., :, None] & columns[..., None, :]).to(boxes.dtype)


def _inside(low: Tensor, high: Tensor, length: int, cells: int) -> Tensor:
    """(...) interval ends along one axis of the canvas -> (..., cells) bool."""
    low, high = low * (cells / length), high * (cells / length)
    centre, extent = (low + high) * 0.5, high - low
    index = torch.arange(cells, device=low.device, dtype=low.dtype)
    return (centre[..., None] - index).abs() / extent[..., None] <= 0.5


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of the features over the cells of each mask; zero for an empty mask.

    In float32 whatever the autocast dtype: a sum over ten thousand cells overflows float16.

    Args:
        features: (B, C, h, w).
        masks: (B, M, h, w) of 0 and 1.

    Returns:
        (B, M, C), float32.

    >>> x = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])  # two channels, 1 x 2 cells
    >>> masked_mean(x, torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])).tolist()
    [[[2.0, 2.0], [0.0, 0.0]]]
    """
    with torch.autocast(features.device.type, enabled=False):
        cells = masks.flatten(2)
        total = torch.bmm(cells, features.flatten(2).float().transpose(1, 2))
        return total / cells.sum(2, keepdim=True).clamp(min=1)
