import math

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from hypothesis import given, settings
from hypothesis import strategies as st
from lgd_cases import CANVAS, annotate
from lgd_reference import box_mask, clamped, image_bitmaps, label_map

from kd_d2.projects.lgd.descriptors import clamp_boxes
from kd_d2.projects.lgd.label_maps import label_map_masks, mask_pictures
from kd_d2.projects.lgd.masks import box_masks, masked_mean


def cells(box, size=(12, 16), canvas=CANVAS):
    mask = box_masks(torch.tensor(box, dtype=torch.float32), canvas, size)
    return {tuple(i) for i in mask.nonzero().tolist()}


def test_hand_computed_masks():
    # Stride 8. Scaled to [1, 3] x [2, 2.5]: both ends of the interval belong to it.
    assert cells([8, 16, 24, 20]) == {(2, 1), (2, 2), (2, 3)}
    # Just off the integer positions on either side.
    assert cells([8.1, 16, 23.9, 20]) == {(2, 2)}
    # Between two cells: empty, not rounded to one.
    assert cells([9, 9, 15, 15]) == set()
    # No width, no height, nothing at all; also exactly on a cell.
    assert cells([8, 8, 8, 40]) == set()
    assert cells([8, 8, 40, 8]) == set()
    assert cells([0, 0, 0, 0]) == set()
    # The dummy box: the first cell at every level.
    for size in ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)):
        assert cells([0, 0, 1, 1], size) == {(0, 0)}
    # The context box after clamping: everything.
    for size in ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)):
        assert len(cells([0, 0, 127, 95], size)) == math.prod(size)


def test_the_ratio_is_that_of_the_level_not_the_stride():
    # 100 pixels on 13 cells: 50 scales to 6.5, whereas 50 / 8 = 6.25.
    assert cells([0, 0, 50, 1], size=(1, 13), canvas=(1, 100)) == {(0, j) for j in range(7)}
    assert cells([47, 0, 100, 1], size=(1, 13), canvas=(1, 100)) == {(0, j) for j in range(7, 13)}


def test_borders_round_as_the_quotient_does():
    """There are boxes for which x1 <= j <= x2 says otherwise; the quotient decides."""
    canvas, size = (96, 133), (1, 17)
    generator = torch.Generator().manual_seed(0)
    x1 = (
        torch.randint(1, 17, (2000,), generator=generator) * 133 / 17
    )  # on a cell, but for rounding
    x2 = (x1 + 60 * torch.rand(2000, generator=generator)).clamp(max=132)
    boxes = torch.stack([x1, torch.zeros(2000), x2, torch.full((2000,), 95.0)], 1)
    masks = box_masks(boxes, canvas, size)[:, 0]
    low, high = x1[:, None] * (17 / 133), x2[:, None] * (17 / 133)
    plain = ((low <= torch.arange(17)) & (torch.arange(17) <= high)).float()
    differ = (masks != plain).any(1).nonzero()[:, 0]
    assert len(differ) > 10
    for n in differ[:10]:
        assert torch.equal(masks[n], box_mask(boxes[n], canvas, size)[0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(-20, 300, width=32), st.integers(0, 160).map(float)),
        min_size=4,
        max_size=4,
    ),
    st.sampled_from([(96, 128), (100, 133), (64, 160)]),
    st.sampled_from([8, 16, 64, 128]),
)
def test_equal_to_scalar_arithmetic(values, canvas, stride):
    x, y = sorted(values[:2]), sorted(values[2:])
    box = torch.tensor([x[0], y[0], x[1], y[1]])
    inside = clamp_boxes(box, canvas)
    assert torch.equal(inside, clamped(box, canvas))
    size = tuple(-(-n // stride) for n in canvas)
    assert torch.equal(box_masks(inside, canvas, size), box_mask(inside, canvas, size))


def test_mean_over_a_mask():
    x = torch.randn(2, 5, 3, 4)
    masks = (torch.rand(2, 6, 3, 4) > 0.5).float()
    masks[0, 0], masks[1, 2] = 0, 1
    mean = masked_mean(x, masks)
    assert torch.equal(mean[0, 0], torch.zeros(5))
    assert torch.allclose(mean[1, 2], x[1].mean((1, 2)), atol=1e-6)
    chosen = x[0][:, masks[0, 1] > 0]
    assert torch.allclose(mean[0, 1], chosen.mean(1), atol=1e-6)


def test_mean_survives_half_precision():
    x = torch.full((1, 2, 300, 300), 4.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        mean = masked_mean(x, torch.ones(1, 1, 300, 300))
    assert mean.dtype == torch.float32
    assert torch.equal(mean, torch.full((1, 1, 2), 4.0))


# ------------------------------------------------------------------------------ annotated masks

IMAGE = (90, 120)  # smaller than the canvas
POLYGONS = [
    [np.array([10.0, 10.0, 60.0, 10.0, 60.0, 70.0, 10.0, 70.0])],
    [np.array([30.0, 20.0, 110.0, 40.0, 50.0, 88.0]), np.array([0.0, 0.0, 20.0, 0.0, 0.0, 20.0])],
]
POLYGON_BOXES = [[10, 10, 60, 70], [0, 0, 110, 88]]


def with_masks(kind):
    polygons = PolygonMasks(POLYGONS)
    masks = polygons
    if kind == "bitmasks":
        masks = BitMasks.from_polygon_masks(polygons, *IMAGE)
    return annotate(POLYGON_BOXES, [0, 1], IMAGE, gt_masks=masks)


@pytest.mark.parametrize("kind", ["polygons", "bitmasks"])
@pytest.mark.parametrize("context", [False, True])
def test_label_maps(kind, context):
    gt = [with_masks(kind), annotate(size=IMAGE)]
    sizes = [(12, 16), (6, 8), (2, 2), (1, 1)]
    levels = label_map_masks(gt, [IMAGE, (96, 100)], CANVAS, sizes, context_box=context)
    for masks, size in zip(levels, sizes, strict=True):
        first = int(context)
        assert masks.shape == (2, 2 + first, *size)
        for n, bitmap in enumerate(image_bitmaps(gt[0], IMAGE)):
            assert torch.equal(masks[0, first + n], label_map(bitmap, CANVAS, size))
        assert not masks[1, first:].any()
        if context:  # the image without its padding
            assert torch.equal(masks[0, 0], label_map(torch.ones(IMAGE), CANVAS, size))
            assert torch.equal(masks[1, 0], label_map(torch.ones(96, 100), CANVAS, size))
    fine = levels[0][0, 0] if context else None
    if context:
        # 90 of 96 rows, 120 of 128 columns: 88 and 120 are the first rows and columns beyond.
        assert fine[:, 15].sum() == 0 and fine[11, :15].sum() == 15


def test_label_maps_overlap():
    (masks,) = label_map_masks(
        [with_masks("polygons")], [IMAGE], CANVAS, [(96, 128)], context_box=0
    )
    assert (masks[0].sum(0) == 2).any()


def test_pictures_of_masks():
    pictures = mask_pictures(with_masks("polygons"))
    assert pictures.shape == (2, 49) and set(pictures.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(pictures[0], torch.ones(49))  # a rectangle fills its own box
    assert pictures[1].view(7, 7)[0, 0] == 1 and pictures[1].view(7, 7)[0, 6] == 0
    other = mask_pictures(with_masks("bitmasks"))
    assert (other != pictures).float().mean() < 0.15  # another rasteriser: equal but for borders
    assert mask_pictures(annotate()).shape == (0, 49)


def test_missing_masks_are_named():
    gt = annotate([[0, 0, 9, 9]], [0])
    with pytest.raises(ValueError, match="needs gt_masks .* has none"):
        mask_pictures(gt)
    with pytest.raises(ValueError, match="set LOAD_LABELMAP False"):
        label_map_masks([gt], [CANVAS], CANVAS, [(2, 2)], context_box=True)
