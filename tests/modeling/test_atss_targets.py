"""Targets of ATSS against hand-computed values and loops over objects written from the paper."""

import math
import statistics

import pytest
import torch
from atss_cases import slow_assignment, slow_decode
from detectron2.modeling.box_regression import Box2BoxTransform

from kd_d2.modeling.detectors.atss_targets import (
    decode_deltas,
    match_anchors,
    mean_plus_std,
    nearest_anchors,
    nearest_decodable,
)

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def grid(height, width, stride, scale=8.0):
    """Square anchors at the upper left corners of the cells, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack((x, y), -1).reshape(-1, 2) * float(stride)
    half = scale * stride / 2
    return torch.cat((points - half, points + half), 1)


def match(anchors, boxes, k=9, valid=None):
    """Index of the box of each anchor of one image, None without one."""
    boxes = torch.tensor(boxes, dtype=torch.float32).view(1, -1, 4)
    valid = valid or [torch.ones(1, len(a), dtype=torch.bool) for a in anchors]
    index, matched = match_anchors(anchors, valid, boxes, k)
    return [i if m else None for i, m in zip(index[0].tolist(), matched[0].tolist(), strict=True)]


# ---- boxes


def test_decoding_inverts_detectron2s_encoding():
    generator = torch.Generator().manual_seed(0)
    anchors, boxes = torch.rand(2, 40, 4, generator=generator) * 20
    anchors[:, 2:] += 40
    boxes[:, 2:] += 60
    deltas = Box2BoxTransform(WEIGHTS).get_deltas(anchors, boxes)
    torch.testing.assert_close(decode_deltas(deltas, anchors, WEIGHTS), boxes)
    torch.testing.assert_close(  # broadcasts over images
        decode_deltas(torch.stack((deltas, deltas)), anchors, WEIGHTS)[1], boxes
    )


def test_decoding_equals_single_numbers():
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(30, 4, generator=generator) * 20  # some beyond the limit, on both sides
    anchors = grid(5, 6, 8)
    decoded = decode_deltas(deltas, anchors, WEIGHTS)
    expected = [slow_decode(*x) for x in zip(deltas.tolist(), anchors.tolist(), strict=True)]
    torch.testing.assert_close(decoded, torch.tensor(expected), rtol=1e-5, atol=1e-3)


def test_size_is_limited_on_both_sides():
    deltas = torch.tensor([[0.0, 0, 1e4, -1e4]], requires_grad=True)
    box = decode_deltas(deltas, torch.tensor([[0.0, 0, 16, 16]]), WEIGHTS)
    torch.testing.assert_close(box, torch.tensor([[-492.0, 7.872, 508.0, 8.128]]))
    box.sum().backward()
    assert deltas.grad.isfinite().all()


# ---- candidates


def test_nearest_by_hand():
    # a row of anchors at x = 0, 8, ..., 56; a box around x = 17
    centres = torch.stack((torch.arange(8) * 8.0, torch.zeros(8)), 1)
    everything, first_two = torch.ones(1, 8).bool(), (torch.arange(8) < 2)[None]
    boxes = torch.tensor([[[17.0, 0], [60, 0]]])
    index, valid = nearest_anchors(centres, everything, boxes, 3)
    assert index.tolist() == [[[2, 3, 1], [7, 6, 5]]] and valid.all()
    index, valid = nearest_anchors(centres, first_two, boxes, 3)
    assert index[..., :2].tolist() == [[[1, 0], [1, 0]]]
    assert valid.tolist() == [[[True, True, False]] * 2]
    index, valid = nearest_anchors(centres, everything, boxes, 100)
    assert index.shape == (1, 2, 8) and valid.all()


def test_a_tie_leaves_the_distances_alone():
    """Which of two equally near anchors is taken is free; that one of them is, and once, is not."""
    centres = torch.tensor([[0.0, 0], [8, 0], [16, 0], [24, 0]])
    index, _ = nearest_anchors(centres, torch.ones(1, 4).bool(), torch.tensor([[[8.0, 0]]]), 2)
    assert index[0, 0, 0] == 1 and index[0, 0, 1] in (0, 2)


def test_threshold_is_mean_and_unbiased_std():
    # mean 4, squared deviations 9 + 1 + 1 + 9 = 20, over n - 1 = 3
    values = torch.tensor([[1.0, 3, 5, 7, 99], [0.1, 0.1, 0.1, 99, 99], [0.5, 99, 99, 99, 99]])
    counted = values < 99
    expected = [[4 + math.sqrt(20 / 3)], [0.1], [0.5]]
    torch.testing.assert_close(mean_plus_std(values, counted), torch.tensor(expected))
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, 45, generator=generator)
    expected = statistics.mean(values[0].tolist()) + statistics.stdev(values[0].tolist())
    assert mean_plus_std(values, values > -1).item() == pytest.approx(expected)
    torch.testing.assert_close(
        mean_plus_std(values, values > -1), values.mean() + values.std()[None, None]
    )


def test_threshold_of_nothing_is_finite():
    assert mean_plus_std(torch.rand(2, 3), torch.zeros(2, 3).bool()).tolist() == [[0.0], [0.0]]


# ---- assignment


def test_assignment_by_hand():
    """Anchors of side 16 at x = 0, 8, 16, 24, 32 and a box of the same height from 0 to 16.

    IoU with the anchors at 0, 8, 16, 24: 8/24, 16/16, 8/24, 0/32. The three nearest have mean 5/9,
    deviations -2/9, 4/9, -2/9, so std sqrt(24/81/2) = 0.3849: only the IoU 1 reaches 0.9405.
    """
    x = torch.arange(5) * 8.0
    anchors = torch.stack((x - 8, torch.zeros(5), x + 8, torch.full((5,), 16.0)), 1)
    assert match([anchors], [0, 0, 16, 16], k=3) == [None, 0, None, None, None]
    # one level more, whose anchors of half the side have IoU 1/4: the mean is (5/3 + 3/4) / 6
    small = torch.stack((x - 4, torch.full((5,), 4.0), x + 4, torch.full((5,), 12.0)), 1)
    ious = [1 / 3, 1, 1 / 3, 1 / 8, 1 / 4, 1 / 8]
    threshold = statistics.mean(ious) + statistics.stdev(ious)
    assert 1 / 3 < threshold < 1
    assert match([anchors, small], [0, 0, 16, 16], k=3) == [None, 0, None, None, None] + [None] * 5


def test_centre_must_lie_inside():
    """A large IoU is not enough for an anchor whose centre is on the border of the box."""
    on_border = [-8.0, 0, 8, 16]  # IoU 128 / 384
    inside = [0.0, 4, 16, 12]  # IoU 128 / 256
    far = [[100.0 + i, 100, 110 + i, 110] for i in range(8)]
    anchors = torch.tensor([on_border, inside, *far])
    assert match([anchors], [0, 0, 16, 16], k=10)[:2] == [None, 0]
    # 1/3 is above the threshold, too
    for shift, expected in ((0.02, 0), (0.005, None)):
        anchors[0] = torch.tensor([-8.0 + shift, 0, 8 + shift, 16])
        assert match([anchors], [0, 0, 16, 16], k=10)[0] == expected


def test_largest_iou_wins_a_contested_anchor():
    far = [[100.0 + i, 100, 110 + i, 110] for i in range(8)]
    anchors = torch.tensor([[0.0, 0, 16, 16], *far])
    near, exact = [1.0, 1, 18, 18], [0.0, 0, 16, 17]
    assert match([anchors], [near, exact], k=9)[0] == 1
    assert match([anchors], [exact, near], k=9)[0] == 0
    assert match([anchors], [exact, exact], k=9)[0] == 0  # the first of equal ones


def test_zero_inverted_and_distant_boxes_match_nothing():
    boxes = [[0.0, 0, 0, 0], [8.0, 8, 8, 20], [20.0, 20, 4, 4], [900.0, 900, 950, 950]]
    assert match([grid(4, 4, 8), grid(2, 2, 16)], boxes) == [None] * 20


@pytest.mark.parametrize("k, scale", [(9, 8.0), (9, 4.0), (3, 2.0), (30, 4.0)])
def test_equals_loops_over_objects(k, scale):
    strides = (8, 16, 32, 64)
    anchors = [grid(-(-128 // s), -(-160 // s), s, scale) for s in strides]
    generator = torch.Generator().manual_seed(k)
    # random fractions: no two anchors are equally far from a box
    corners = torch.rand(3, 10, 2, 2, generator=generator) * torch.tensor([160.0, 128.0])
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    boxes[0, 6:] = 0  # fewer objects in the first image
    boxes[1, :4, 2:] = boxes[1, :4, :2] + 3 + torch.rand(4, 2, generator=generator)  # tiny ones
    boxes[2, 5:] = boxes[2, :5] + torch.rand(5, 4, generator=generator)  # contested anchors
    # the second image has fewer valid cells
    limits = ((160, 128), (96, 64), (160, 128))
    valid = [
        torch.stack([((a[:, :2] + a[:, 2:]) / 2 < torch.tensor(wh)).all(1) for wh in limits])
        for a in anchors
    ]
    index, matched = match_anchors(anchors, valid, boxes, k)
    for n, count in enumerate((6, 10, 10)):
        expected = slow_assignment(
            [a.tolist() for a in anchors],
            [v[n].tolist() for v in valid],
            boxes[n, :count].double().tolist(),
            k,
        )
        found = [
            i if m else None for i, m in zip(index[n].tolist(), matched[n].tolist(), strict=True)
        ]
        assert found == expected
        assert matched[n].any()
    assert not matched[1][~torch.cat(valid, 1)[1]].any()


def test_images_and_the_order_of_objects_do_not_matter():
    anchors = [grid(8, 8, 8), grid(4, 4, 16)]
    valid = [torch.ones(2, len(a)).bool() for a in anchors]
    boxes = torch.tensor([[[3.0, 4, 41, 38], [20, 11, 60, 60]], [[20, 11, 60, 60], [0, 0, 0, 0]]])
    index, matched = match_anchors(anchors, valid, boxes, 9)
    flipped_index, flipped = match_anchors(anchors, valid, boxes.flip(1), 9)
    assert torch.equal(matched, flipped)
    assert torch.equal(index[matched], 1 - flipped_index[matched])
    alone, alone_matched = match_anchors(anchors, [v[:1] for v in valid], boxes[1:], 9)
    assert torch.equal(matched[1:], alone_matched)
    assert torch.equal(index[1:][matched[1:]], alone[alone_matched])


def test_targets_are_what_an_output_can_stand_for():
    anchors = grid(1, 1, 8)  # 64 pixels: from 1.024 to 4000
    boxes = torch.tensor([[0.0, 0, 30, 40], [9, 4, 11, 4.5], [-3000, 0, 3000, 10]])
    near = nearest_decodable(boxes, anchors)
    assert torch.equal(near[0], boxes[0])
    deltas = Box2BoxTransform(WEIGHTS).get_deltas(anchors.expand(3, 4), boxes)
    torch.testing.assert_close(near, decode_deltas(deltas, anchors, WEIGHTS), rtol=0, atol=1e-3)
    assert near[1, 3] - near[1, 1] == pytest.approx(1.024, abs=1e-5)
