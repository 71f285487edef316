"""Hits, false alarms and what ignore regions swallow."""

import numpy as np
import pytest
from crowd_cases import WORKED_EXAMPLE, clipped, iou, random_images, slow_kinds

from kd_d2.evaluation.crowd_matching import (
    DROPPED,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    corners_in_image,
    match_detections,
    overlaps_of_image,
    pairwise_iou,
)


def compare(image):
    table = np.array(image["detections"]).reshape(-1, 5)
    objects, ignored = (np.array(image[k]).reshape(-1, 4) for k in ("objects", "ignored"))
    return overlaps_of_image(table[:, :4], table[:, 4], objects, ignored, image["size"])


def kinds(detections, objects=(), ignored=(), size=(200, 100)):
    image = {"size": size, "detections": detections, "objects": objects, "ignored": ignored}
    return match_detections(compare(image)).tolist()


def test_clipping_leaves_a_pixel_at_the_far_borders_only():
    boxes = [[-50, 0, 20, 20], [250, 120, 20, 20], [-5, -5, 300, 300], [3, 4, 5, 6]]
    expected = [[0, 0, 0, 20], [199, 99, 200, 100], [0, 0, 200, 100], [3, 4, 8, 10]]
    assert corners_in_image(np.array(boxes), 200, 100).tolist() == expected


def test_the_small_number_in_the_denominator():
    one = np.array([[0.0, 0, 1, 1]])
    assert pairwise_iou(one, one)[0, 0] == 1 / (1 + 1e-6)
    assert pairwise_iou(one * 0, one * 0)[0, 0] == 0


def test_worked_example():
    assert [match_detections(compare(image)).tolist() for image in WORKED_EXAMPLE] == [
        [TRUE_POSITIVE, TRUE_POSITIVE, FALSE_POSITIVE, DROPPED],
        [FALSE_POSITIVE, TRUE_POSITIVE],
    ]


def test_an_overlap_of_one_half_is_none():
    # 10 x 10 in 10 x 20: IoU 100 / (200 + 1e-6) is just below; without the 1e-6 it is 0.5
    assert kinds([(0, 0, 10, 10, 0.9)], [(0, 0, 10, 20)]) == [FALSE_POSITIVE]
    assert kinds([(0, 0, 10, 10, 0.9)], [(0, 0, 10, 19)]) == [TRUE_POSITIVE]
    assert kinds([(0, 0, 10, 20, 0.9)], ignored=[(0, 0, 10, 10)]) == [FALSE_POSITIVE]
    assert kinds([(0, 0, 10, 20, 0.9)], ignored=[(0, 0, 10, 11)]) == [DROPPED]


def test_an_object_is_found_once_and_by_the_best():
    objects = [(0, 0, 20, 40)]
    worse, better = (2, 0, 20, 40, 0.5), (4, 0, 20, 40, 0.9)
    assert kinds([worse, better], objects) == [TRUE_POSITIVE, FALSE_POSITIVE]
    # it takes the object with the largest IoU, though the other one is then not found at all
    objects = [(0, 0, 20, 40), (5, 0, 20, 40)]
    assert kinds([(4, 0, 20, 40, 0.9), (9, 0, 20, 40, 0.8)], objects) == [TRUE_POSITIVE, 0]
    assert kinds([(4, 0, 20, 40, 0.9), (1, 0, 20, 40, 0.8)], objects) == [TRUE_POSITIVE] * 2


def test_the_first_of_equal_objects_is_taken():
    """Which of them shows in what is left for the next detection."""
    left, right = (0, 0, 20, 40), (8, 0, 20, 40)
    between = (4, 0, 20, 40, 0.9)
    assert kinds([between, (8, 0, 20, 40, 0.8)], [left, right]) == [TRUE_POSITIVE] * 2
    assert kinds([between, (8, 0, 20, 40, 0.8)], [right, left]) == [TRUE_POSITIVE, FALSE_POSITIVE]


def test_ignore_regions_swallow_any_number_but_objects_come_first():
    region = [(0, 0, 100, 100)]
    inside = [(10, 10, 20, 40, 0.9), (11, 10, 20, 40, 0.8), (12, 10, 20, 40, 0.7)]
    assert kinds(inside, ignored=region) == [DROPPED] * 3
    assert kinds(inside, [(10, 10, 20, 40)], region) == [TRUE_POSITIVE, DROPPED, DROPPED]
    # two regions that share a detection do not add up
    halves = [(0, 0, 20, 100), (20, 0, 20, 100)]
    assert kinds([(10, 10, 20, 40, 0.9)], ignored=halves) == [FALSE_POSITIVE]


def test_equal_scores_keep_their_order():
    objects = [(0, 0, 20, 40)]
    assert kinds([(2, 0, 20, 40, 0.5), (0, 0, 20, 40, 0.5)], objects) == [1, 0]


@pytest.mark.parametrize("grid", [None, 8])
def test_random_images_equal_the_definition(grid):
    dropped = 0
    for seed in range(20):
        for image in random_images(seed, grid=grid):
            fast = compare(image)
            result = match_detections(fast)
            assert result.shape == fast.scores.shape == (len(image["detections"]),)
            dropped += (result == DROPPED).sum()
            counted = result != DROPPED
            mine = list(zip(fast.scores[counted], result[counted] == TRUE_POSITIVE, strict=True))
            assert mine == slow_kinds(image)
    assert dropped > 50


def test_random_overlaps_equal_single_numbers():
    for image in random_images(0):
        boxes = [clipped(x, image["size"]) for x in image["objects"]]
        expected = [[iou(a, b) for b in boxes] for a in boxes]
        table = corners_in_image(np.array(image["objects"]).reshape(-1, 4), *image["size"])
        np.testing.assert_array_equal(
            pairwise_iou(table, table), np.array(expected).reshape(len(boxes), len(boxes))
        )
