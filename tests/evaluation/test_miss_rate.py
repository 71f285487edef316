"""AP and MR of curves by hand."""

import math

import numpy as np
import pytest

from kd_d2.evaluation.miss_rate import (
    average_precision,
    detection_curve,
    log_average_miss_rate,
)


def curve(right, num_objects, num_images, scores=None):
    scores = np.linspace(0.9, 0.1, len(right)) if scores is None else np.array(scores)
    return detection_curve(scores, np.array(right, dtype=bool), num_objects, num_images)


def test_worked_example():
    table = curve([1, 0, 1, 1, 0], 4, 2)
    np.testing.assert_allclose(table.recall, [0.25, 0.25, 0.5, 0.75, 0.75])
    np.testing.assert_allclose(table.precision, [1, 0.5, 2 / 3, 0.75, 0.6])
    np.testing.assert_allclose(table.false_alarms, [0, 0.5, 0.5, 0.5, 1.0])
    assert average_precision(table) == pytest.approx(0.3229167, abs=1e-7)
    assert log_average_miss_rate(table) == pytest.approx(0.5875358, abs=1e-7)


def test_pooling_sorts_and_keeps_the_order_of_ties():
    table = curve([0, 1, 0, 1], 2, 1, scores=[0.2, 0.5, 0.5, 0.9])
    np.testing.assert_array_equal(table.precision, [1, 1, 2 / 3, 0.5])
    table = curve([0, 0, 1, 1], 2, 1, scores=[0.2, 0.5, 0.5, 0.9])
    np.testing.assert_array_equal(table.precision, [1, 0.5, 2 / 3, 0.5])


def test_nothing_before_the_first_detection_counts():
    assert average_precision(curve([1, 1, 1, 1], 4, 1)) == 0.75
    assert average_precision(curve([1], 1, 1)) == 0


def test_no_detections():
    table = curve([], 3, 2)
    assert average_precision(table) == 0 and log_average_miss_rate(table) == 1


def test_no_false_alarms_reads_the_last_miss_rate():
    assert log_average_miss_rate(curve([1, 1, 1], 4, 1)) == pytest.approx(0.25)


def test_finding_all_anywhere_gives_no_misses():
    assert log_average_miss_rate(curve([1, 0, 1], 2, 2)) == 0


def test_reference_points_are_the_rounded_ones():
    """Of 10,000 images, 178 false alarms reach the second point and 177 do not."""

    def missed(before):
        right = [1] + [0] * before + [1] + [0] * 20_000
        return log_average_miss_rate(curve(right, 3, 10_000))

    # a second person is found before or after the point is reached
    assert missed(177) == pytest.approx(math.exp((math.log(2 / 3) + 8 * math.log(1 / 3)) / 9))
    assert missed(178) == pytest.approx(math.exp((2 * math.log(2 / 3) + 7 * math.log(1 / 3)) / 9))
