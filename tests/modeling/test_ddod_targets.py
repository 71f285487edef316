"""Targets of DDOD against hand-computed values and loops over objects."""

import pytest
import torch
from ddod_cases import slow_owners

from kd_d2.modeling.detectors.ddod_targets import level_weights, match_by_quality


def match(centres, quality, boxes, k=9, valid=None):
    """Index of the box of each anchor of one image, None without one."""
    centres = torch.tensor(centres, dtype=torch.float32)
    valid = torch.ones(1, len(centres), dtype=torch.bool) if valid is None else valid
    index, matched = match_by_quality(
        centres,
        valid,
        torch.tensor(quality, dtype=torch.float32)[None],
        torch.tensor(boxes, dtype=torch.float32).view(1, -1, 4),
        k,
    )
    return [i if m else None for i, m in zip(index[0].tolist(), matched[0].tolist(), strict=True)]


ROW = [[4.0 + 8 * i, 4.0] for i in range(6)]  # centres at x = 4, 12, ..., 44


def test_best_of_all_by_hand():
    quality = [[0.1, 0.5, 0.3, 0.0, 0.4, 0.9]]
    everything = [0, 0, 48, 8]
    assert match(ROW, quality, everything, k=3) == [None, 0, None, None, 0, 0]
    # of the three best, two lie in the box: no others take the third's place
    assert match(ROW, quality, [0, 0, 40, 8], k=3) == [None, 0, None, None, 0, None]
    # no quality, no positive
    assert match(ROW, quality, everything, k=6) == [0, 0, 0, None, 0, 0]
    assert match(ROW, [[0.0] * 6], everything, k=6) == [None] * 6


def test_fewer_anchors_than_candidates():
    assert match(ROW, [[0.1, 0.5, 0.3, 0.2, 0.4, 0.9]], [0, 0, 24, 8], k=99) == [0] * 3 + [None] * 3


def test_centre_must_lie_inside_by_a_hundredth_of_a_pixel():
    for x, expected in ((3.98, 0), (3.995, None), (4.0, None)):
        assert match(ROW[:1], [[0.5]], [x, 0, 8, 8])[0] == expected
        assert match(ROW[:1], [[0.5]], [0, 0, 8 - x, 8])[0] == expected
        assert match(ROW[:1], [[0.5]], [0, x, 8, 8])[0] == expected


def test_highest_quality_wins_a_contested_anchor():
    boxes = [[0, 0, 16, 8], [0, 0, 24, 8]]
    quality = [[0.5, 0.4, 0.9], [0.3, 0.6, 0.1]]
    assert match(ROW[:3], quality, boxes) == [0, 1, 1]
    assert match(ROW[:3], quality, boxes, k=1) == [None, 1, None]  # 0's best is outside of it
    # two objects with one best anchor: the first of equal ones, and the other has nothing
    assert match(ROW[:2], [[0.5, 0.2], [0.5, 0.1]], boxes, k=1) == [0, None]
    assert match(ROW[:2], [[0.5, 0.2], [0.6, 0.1]], boxes, k=1) == [1, None]


def test_an_object_that_loses_outside_its_box_does_not_win():
    """The better one must be positive itself: its quality elsewhere takes nothing away."""
    assert match(ROW[:2], [[0.5, 0.4], [0.9, 0.8]], [[0, 0, 16, 8], [8, 0, 16, 8]]) == [0, 1]


def test_invalid_anchors_take_nobodys_place():
    valid = torch.tensor([[True, False, True, True, True, False]])
    quality = [[0.1, 0.5, 0.3, 0.2, 0.0, 0.9]]
    assert match(ROW, quality, [0, 0, 48, 8], k=2, valid=valid) == [
        None,
        None,
        0,
        0,
        None,
        None,
    ]


def test_ties_leave_the_number_of_positives_alone():
    """Which of equally good anchors are taken is free; how many is not."""
    owners = match(ROW, [[0.5, 0.5, 0.7, 0.5, 0.5, 0.5]], [0, 0, 48, 8], k=4)
    assert owners[2] == 0 and owners.count(0) == 4


def test_zero_inverted_and_distant_boxes_match_nothing():
    boxes = [[0, 0, 0, 0], [8, 2, 8, 6], [20, 8, 4, 0], [900, 900, 950, 950]]
    assert match(ROW, [[0.5] * 6] * 4, boxes) == [None] * 6


@pytest.mark.parametrize("k", [1, 9, 40, 1000])
def test_equals_loops_over_objects(k):
    generator = torch.Generator().manual_seed(k)
    centres = torch.rand(300, 2, generator=generator) * torch.tensor([160.0, 128.0])
    corners = torch.rand(3, 10, 2, 2, generator=generator) * torch.tensor([160.0, 128.0])
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    boxes[0, 6:] = 0  # fewer objects in the first image
    boxes[1, :4, 2:] = boxes[1, :4, :2] + 0.5  # tiny ones, most without an anchor inside
    boxes[2, 5:] = boxes[2, :5] + torch.rand(5, 4, generator=generator)
    quality = torch.rand(3, 10, 300, generator=generator)
    quality[quality < 0.2] = 0
    quality[2, 5:] = quality[2, :5]  # contested, and equally good
    valid = torch.rand(3, 300, generator=generator) < 0.8
    valid[1, 5:] = False  # fewer than k
    index, matched = match_by_quality(centres, valid, quality, boxes, k)
    for n, count in enumerate((6, 10, 10)):
        expected = slow_owners(
            centres.double().tolist(),
            valid[n].tolist(),
            quality[n, :count].tolist(),
            boxes[n, :count].double().tolist(),
            k,
        )
        found = [
            i if m else None for i, m in zip(index[n].tolist(), matched[n].tolist(), strict=True)
        ]
        assert found == expected
    assert matched[0].any() and not matched[1, 5:].any()


# ---- levels


@pytest.mark.parametrize("counts", [[7, 3, 0, 1, 2], [0, 0, 0], [5, 5, 5], [4], [0, 1]])
def test_level_weights_equal_single_numbers(counts):
    low, high = min(counts), max(counts)
    expected = [2 - (n - low) / (high - low + 1e-10) for n in counts]
    assert level_weights(torch.tensor(counts)).tolist() == pytest.approx(expected)


def test_level_weights_of_long_trainings():
    """Counts beyond the whole numbers of float32 still tell the levels apart."""
    counts = torch.tensor([2**40 + 30, 2**40 + 10, 2**40])
    assert level_weights(counts).tolist() == pytest.approx([1, 5 / 3, 2])
