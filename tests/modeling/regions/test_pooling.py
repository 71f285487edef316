"""RoIAlign by matrix products is torchvision's."""

import pytest
import torch
from torchvision.ops import roi_align

from kd_d2.modeling.regions import Regions
from kd_d2.modeling.regions.pooling import pool_regions


def regions(counts, width, height, seed=0):
    """Boxes within the image, one of all of it, one without an area, and some beyond its border."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(counts)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sizes = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat((corners, corners + sizes), 1)
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    boxes[1, 2:] = boxes[1, :2]
    boxes[2] = torch.tensor([-3.0 * width, 0.0, 3.0 * width, 2.0 * height])
    return Regions(boxes, counts, torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize("size", [(12, 9), (1, 1), (2, 30)])
@pytest.mark.parametrize("samples,resolution", [(2, 7), (1, 7), (3, 5)])
@pytest.mark.parametrize("counts", [[5, 4], [9, 0], [0, 7]])
def test_values_and_gradients(size, samples, resolution, counts, monkeypatch):
    height, width = size
    found = regions(counts, 8.0 * width, 8.0 * height)
    feature = torch.randn(2, 3, height, width, dtype=torch.float32, requires_grad=True)
    expected = roi_align(feature, found.rois(), resolution, 1 / 8, samples, aligned=True)
    aim = torch.randn_like(expected)
    monkeypatch.setattr("kd_d2.modeling.regions.pooling.roi_align", None)
    pooled = pool_regions(feature, found, 8, resolution, samples)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    (own,), (theirs,) = (torch.autograd.grad((x * aim).sum(), feature) for x in (pooled, expected))
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size,samples", [((40, 40), 2), ((8, 8), 0)])
def test_large_levels_and_adaptive_grids_take_the_kernel(size, samples, monkeypatch):
    found = regions([3, 2], 8.0 * size[1], 8.0 * size[0])
    feature = torch.randn(2, 3, *size)
    expected = roi_align(feature, found.rois(), 7, 1 / 8, samples, aligned=True)
    monkeypatch.setattr("kd_d2.modeling.regions.pooling.bin_weights", None)
    assert torch.equal(pool_regions(feature.double(), found, 8, 7, samples), expected)


def test_no_regions():
    empty = Regions(torch.zeros(0, 4), [0, 0], torch.zeros(0, dtype=torch.bool))
    for size in (8, 40):
        feature = torch.randn(2, 3, size, size, requires_grad=True)
        pooled = pool_regions(feature, empty, 8, 7, 2)
        assert pooled.shape == (0, 3, 7, 7)
        pooled.sum().backward()
        assert not feature.grad.any()


def test_taken_regions():
    found = regions([5, 4], 64.0, 64.0)
    found.locations = torch.arange(9)
    some = found.take(torch.tensor([1, 4, 5]))
    assert some.counts == [2, 1] and some.locations.tolist() == [1, 4, 5]
    assert torch.equal(some.rois(), found.rois()[[1, 4, 5]]) and len(some.foreground) == 3
    assert found.take(torch.arange(0)).counts == [0, 0]
