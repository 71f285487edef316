"""Targets of FCOS against hand-computed values and per-point loops written from the paper."""

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from kd_d2.modeling.detectors.fcos_targets import (
    centerness_targets,
    distances_to_boxes,
    giou_loss_of_distances,
    level_ranges,
    match_points,
)

INF = math.inf


def match(points, boxes, strides=8.0, ranges=(-1.0, INF), radius=1.5):
    """Index of the box of each point of one image, None without one."""
    points = torch.tensor(points, dtype=torch.float32)
    strides = torch.as_tensor(strides, dtype=torch.float32).expand(len(points))
    ranges = torch.as_tensor(ranges, dtype=torch.float32).expand(len(points), 2)
    boxes = torch.tensor(boxes, dtype=torch.float32).view(1, -1, 4)
    index, matched = match_points(points, strides, ranges, boxes, radius)
    return [i if m else None for i, m in zip(index[0].tolist(), matched[0].tolist(), strict=True)]


def slow_match(points, strides, ranges, boxes, radius):
    result = []
    for (x, y), stride, (low, high) in zip(points, strides, ranges, strict=True):
        best, best_area = None, INF
        for m, (x1, y1, x2, y2) in enumerate(boxes):
            cx, cy, half = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
            in_box = x1 < x < x2 and y1 < y < y2
            in_centre = abs(x - cx) < half and abs(y - cy) < half
            largest = max(x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            wanted = in_box and (in_centre or radius == 0) and low <= largest <= high
            if wanted and area < best_area:
                best, best_area = m, area
        result.append(best)
    return result


def test_border_of_the_box_is_outside():
    box = [10.0, 10, 20, 20]
    assert match([[10, 15], [15, 20], [10.5, 15], [15, 19.5]], box) == [None, None, 0, 0]


def test_border_of_the_centre_square_is_outside():
    # centre (50, 50), stride 8: the square is 38..62, open
    points = [[38, 50], [62, 50], [38.5, 50], [50, 61.5], [50, 62]]
    assert match(points, [0.0, 0, 100, 100]) == [None, None, 0, 0, None]
    assert match(points, [0.0, 0, 100, 100], radius=0) == [0] * 5


def test_ranges_include_both_ends():
    # from the centre of a box of side 128 the largest distance is exactly 64
    points, box = [[64.0, 64]] * 4, [0.0, 0, 128, 128]
    ranges = [[-1, 64], [64, 128], [-1, 63.9], [64.1, 128]]
    assert match(points, box, ranges=ranges) == [0, 0, None, None]


def test_smallest_box_wins():
    large, small = [0.0, 0, 40, 40], [10.0, 10, 30, 30]
    assert match([[20, 20]], [large, small]) == [1]
    assert match([[20, 20]], [small, large]) == [0]


def test_zero_and_inverted_boxes_match_nothing():
    points = [[0, 0], [4, 4], [0.5, 0.5]]
    assert match(points, [[0.0, 0, 0, 0], [8.0, 8, 2, 2]]) == [None] * 3


@pytest.mark.parametrize("radius", [1.5, 0.0, 0.75])
def test_equals_per_point_loops(radius):
    generator = torch.Generator().manual_seed(0)
    strides_of_levels, sizes = (8, 16, 32), [32, 64]
    points, strides, ranges = [], [], []
    for stride, level_range in zip(strides_of_levels, level_ranges(sizes), strict=True):
        for y in range(128 // stride):
            for x in range(128 // stride):
                points.append([(x + 0.5) * stride, (y + 0.5) * stride])
                strides.append(stride)
                ranges.append(level_range)
    # whole numbers, multiples of 4: many points fall exactly on borders, centres and range ends
    corners = torch.randint(0, 32, (3, 12, 2, 2), generator=generator) * 4.0
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    index, matched = match_points(
        torch.tensor(points),
        torch.tensor(strides, dtype=torch.float32),
        torch.tensor(ranges),
        boxes,
        radius,
    )
    for n in range(len(boxes)):
        expected = slow_match(points, strides, ranges, boxes[n].tolist(), radius)
        areas = (boxes[n, :, 2:] - boxes[n, :, :2]).prod(-1).tolist()
        for i, m, e in zip(index[n].tolist(), matched[n].tolist(), expected, strict=True):
            assert m == (e is not None)
            assert e is None or areas[i] == areas[e]
    assert matched.any(dim=1).all()


def test_images_do_not_see_each_other():
    points, strides = torch.tensor([[20.0, 20.0]]), torch.tensor([8.0])
    boxes = torch.tensor([[[10.0, 10, 30, 30]], [[0.0, 0, 0, 0]]])
    _, matched = match_points(points, strides, torch.tensor([[-1.0, INF]]), boxes, 1.5)
    assert matched.tolist() == [[True], [False]]


def test_centerness_values():
    distances = torch.tensor(
        [[5.0, 5, 5, 5], [1, 4, 4, 1], [0, 3, 9, 3], [-1, 2, 5, 2], [0, 0, 0, 0]]
    )
    assert centerness_targets(distances).tolist() == [1.0, 0.25, 0.0, 0.0, 0.0]


def test_distances():
    points, boxes = torch.tensor([[12.0, 20.0]]), torch.tensor([[10.0, 10, 40, 60]])
    assert distances_to_boxes(points, boxes).tolist() == [[2.0, 10.0, 28.0, 40.0]]


def test_giou_loss_equals_torchvision():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.rand(2, 50, 4, generator=generator, dtype=torch.float64) * 50
    sign = torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)
    expected = generalized_box_iou_loss(predicted * sign, target * sign)
    torch.testing.assert_close(
        giou_loss_of_distances(predicted, target), expected, atol=1e-6, rtol=0
    )


def test_giou_loss_by_hand():
    # 2x2 inside 4x4: IoU 1/4, hull = union. 4x2 across 2x4: IoU 4/12, hull 16.
    predicted = torch.tensor([[1.0, 1, 1, 1], [2, 1, 2, 1], [0, 0, 0, 0]])
    target = torch.tensor([[2.0, 2, 2, 2], [1, 2, 1, 2], [0, 0, 0, 0]])
    loss = giou_loss_of_distances(predicted, target)
    torch.testing.assert_close(loss, torch.tensor([0.75, 1 - 4 / 12 + 4 / 16, 1.0]))


def test_giou_loss_of_a_point_has_a_finite_gradient():
    predicted = torch.zeros(3, 4, requires_grad=True)
    giou_loss_of_distances(predicted, torch.ones(3, 4)).sum().backward()
    assert torch.isfinite(predicted.grad).all()
    assert (predicted.grad <= 0).all()  # a larger box is better


def test_giou_gradcheck():
    generator = torch.Generator().manual_seed(0)
    predicted = (torch.rand(6, 4, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
    target = torch.rand(6, 4, generator=generator, dtype=torch.float64) + 0.5
    torch.autograd.gradcheck(lambda x: giou_loss_of_distances(x, target), predicted)
