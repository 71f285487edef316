"""Annotated masks instead of boxes (``LOAD_LABELMAP``): object regions and 7x7 pictures.

Polygons live on the CPU in Python lists, so this reads them object by object there, as Detectron2's
own mask head does. The box variant needs none of this.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

_SIDE = 7
MASK_CELLS = _SIDE * _SIDE


def mask_pictures(gt: Instances) -> Tensor:
    """Each object's mask, cut out by its (unclamped) box and resized to 7x7.

    Returns:
        (N, 49) of 0 and 1 in float32, row by row.

    Raises:
        ValueError: if there are objects but no masks.
    """
    if not len(gt):
        return torch.zeros(0, MASK_CELLS)
    pictures = _masks(gt).crop_and_resize(gt.gt_boxes.tensor, _SIDE)
    return pictures.flatten(1).float()


@torch.no_grad()
def label_map_masks(
    gt: Sequence[Instances],
    image_sizes: Sequence[tuple[int, int]],
    canvas: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    *,
    context_box: bool,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The annotated masks, resized to the levels (nearest neighbour) in the order of the rows.

    The context row (of images without objects too) covers the image without its padding; a dummy
    row and fillers cover nothing.

    Args:
        gt: B annotated images with ``gt_masks``, polygons or bitmaps.
        image_sizes: (height, width) of each image on the canvas.
        canvas: (H, W) of the padded batch.
        sizes: (h, w) of each level.

    Returns:
        one (B, M, h, w) of 0 and 1 in float32 a level.

    Raises:
        ValueError: if there are objects but no masks.
    """
    levels: list[list[Tensor]] = [[] for _ in sizes]
    for x, image_size in zip(gt, image_sizes, strict=True):
        bitmaps = _bitmaps(x, image_size)
        if not context_box and not len(x):
            bitmaps = torch.zeros(1, *image_size, dtype=torch.bool)
        if context_box:
            whole = torch.ones(1, *image_size, dtype=torch.bool, device=bitmaps.device)
            bitmaps = torch.cat([whole, bitmaps])
        for masks, size in zip(levels, sizes, strict=True):
            masks.append(_to_level(bitmaps, canvas, size).to(device, torch.float32))
    # As in the descriptors: with the context row there is room for an object at least.
    rows = max(1, *map(len, gt)) + int(context_box)
    stacked = [pad_sequence(masks, batch_first=True) for masks in levels]
    return [F.pad(m, (0, 0, 0, 0, 0, rows - m.shape[1])) for m in stacked]


def _masks(gt: Instances) -> PolygonMasks | BitMasks:
    masks = gt.gt_masks if gt.has("gt_masks") else None
    if not isinstance(masks, PolygonMasks | BitMasks):
        raise ValueError(
            "MODEL.KD.LGD.LOAD_LABELMAP needs gt_masks (PolygonMasks or BitMasks) of every object, "
            f"and an image has {'none' if masks is None else type(masks).__name__}: use a data set "
            "with masks and a data mapper with use_instance_mask, or set LOAD_LABELMAP False."
        )
    return masks


def _bitmaps(gt: Instances, image_size: tuple[int, int]) -> Tensor:
    """(N, height, width) bool."""
    if not len(gt):
        return torch.zeros(0, *image_size, dtype=torch.bool)
    masks = _masks(gt)
    if isinstance(masks, BitMasks):
        return masks.tensor
    return torch.from_numpy(
        np.stack([polygons_to_bitmask(p, *image_size) for p in masks.polygons]).astype(bool)
    )


def _to_level(bitmaps: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Zero-pads (N, height, width) to the canvas and resizes it; reads only the cells it needs."""
    for axis, (length, cells) in enumerate(zip(canvas, size, strict=True), start=1):
        # The rule of interpolate itself, so that indices round as they do there.
        index = torch.arange(length, dtype=torch.float32)[None, None]
        index = F.interpolate(index, size=cells, mode="nearest")[0, 0].long()
        inside = index < bitmaps.shape[axis]
        shape = [1, 1, 1]
        shape[axis] = cells
        index, inside = index.to(bitmaps.device), inside.to(bitmaps.device)
        last = bitmaps.shape[axis] - 1
        bitmaps = bitmaps.index_select(axis, index.clamp(max=last)) & inside.view(shape)
    return bitmaps
