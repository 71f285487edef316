"""The Jaccard index against hand-computed values and an exhaustive search."""

import numpy as np
import pytest
from crowd_cases import WORKED_EXAMPLE, random_images, slow_image_jaccard, slow_matching
from test_crowd_matching import compare

from kd_d2.evaluation.crowd_matching import ImageOverlaps
from kd_d2.evaluation.jaccard_index import (
    SCORE_THRESHOLDS,
    image_jaccard,
    jaccard_index,
    maximum_weight_matching,
)


def image(iou, scores=None, ignored=None, ignored_objects=None):
    iou = np.array(iou, dtype=float)
    scores = np.linspace(0.95, 0.91, len(iou)) if scores is None else np.array(scores)
    blank = np.zeros(len(iou), bool), np.zeros(iou.shape[1], bool)
    return ImageOverlaps(
        scores,
        iou,
        blank[0] if ignored is None else np.array(ignored),
        blank[1] if ignored_objects is None else np.array(ignored_objects),
    )


def test_worked_example():
    ratios, counted = zip(*(image_jaccard(compare(x)) for x in WORKED_EXAMPLE), strict=True)
    np.testing.assert_allclose(ratios[0], [2 / 3] * 6 + [1] * 2 + [0.5] * 2, atol=1e-6)
    np.testing.assert_allclose(ratios[1], [1 / 3] * 7 + [0] * 3, atol=1e-6)
    assert np.array(counted).all()
    assert jaccard_index(sum(ratios), sum(counted)) == pytest.approx(0.6666664, abs=5e-8)


def test_thresholds_are_products():
    assert SCORE_THRESHOLDS.tolist() == [0.1 * i for i in range(10)]
    # 0.1 * 3 and 0.1 * 6 are above 0.3 and 0.6; a score must be above the threshold
    ratio, _ = image_jaccard(image([[0.9]], scores=[0.3]))
    assert (ratio > 0).tolist() == [True] * 3 + [False] * 7
    ratio, _ = image_jaccard(image([[0.9]], scores=[0.5]))
    assert (ratio > 0).tolist() == [True] * 5 + [False] * 5


def test_the_matching_is_the_heaviest_and_not_greedy():
    # greedy takes 0.95 and leaves the second object to nobody
    rows, columns = maximum_weight_matching(np.array([[0.95, 0.9], [0.8, 0.1]]))
    assert list(zip(rows, columns, strict=True)) == [(0, 1), (1, 0)]
    # a non-edge of 0.5 weighs nothing, and is no pair
    rows, columns = maximum_weight_matching(np.array([[0.9, 0.6], [0.5, 0.5]]))
    assert list(zip(rows, columns, strict=True)) == [(0, 0)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 2)])
def test_matching_nothing(shape):
    rows, columns = maximum_weight_matching(np.zeros(shape))
    assert len(rows) == len(columns) == 0


def test_ignore_regions_excuse_both_sides_unless_they_are_matched():
    ignored = image([[0.9, 0], [0, 0], [0, 0]], ignored=[True, True, False])
    assert image_jaccard(ignored)[0][0] == pytest.approx(1 / (2 + 2 - 1))
    ignored = image([[0.9, 0], [0, 0]], ignored_objects=[True, True])
    assert image_jaccard(ignored)[0][0] == pytest.approx(1 / (1 + 2 - 1))


def test_images_with_nothing_that_counts_are_not_counted():
    ratio, counted = image_jaccard(image(np.zeros((1, 1)), ignored=[True], ignored_objects=[True]))
    assert not ratio.any() and not counted.any()
    _, counted = image_jaccard(image(np.zeros((0, 0))))
    assert not counted.any()
    _, counted = image_jaccard(image(np.zeros((1, 0)), scores=[0.45]))  # a false alarm up to 0.4
    assert counted.tolist() == [True] * 5 + [False] * 5
    assert jaccard_index(np.zeros(10), np.zeros(10)) == 0


def test_random_images_equal_the_definition():
    matched = 0
    for seed in range(12):
        for case in random_images(seed, count=8):
            ratio, counted = image_jaccard(compare(case))
            expected = [slow_image_jaccard(case, 0.1 * i) for i in range(10)]
            np.testing.assert_allclose(ratio, [x for x, _ in expected], rtol=1e-12)
            assert counted.tolist() == [x for _, x in expected]
            matched += (ratio > 0).sum()
    assert matched > 100


def test_random_matchings_are_as_heavy_as_the_best():
    rng = np.random.default_rng(0)
    for _ in range(30):
        iou = rng.random((rng.integers(1, 9), rng.integers(1, 6)))
        pairs = slow_matching(tuple(map(tuple, iou.tolist())))
        rows, columns = maximum_weight_matching(iou)
        assert len(set(rows)) == len(set(columns)) == len(rows) and (iou[rows, columns] > 0.5).all()
        assert iou[rows, columns].sum() == pytest.approx(sum(iou[i, j] for i, j in pairs))
