"""Scores on a common scale, and weights made of scores."""

import numpy as np
import pytest

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.calibration import calibrate
from kd_d2.projects.pseudo_label.weights import WEIGHT_MODES, linear_weights, weights


def test_by_the_formula():
    s = np.float32([0, 0.2, 0.4, 0.7, 1, 0.45, 0.9])
    t = np.array([0.4, 0.4, 0.4, 0.4, 0.4, 0.9, 0.9])
    expected = [0, 0.25, 0.5, 0.75, 1, 0.25, 0.5]
    assert calibrate(s, t) == pytest.approx(expected, abs=1e-6)
    assert calibrate(s, t).dtype == np.float32


def test_a_threshold_of_a_half_changes_nothing():
    s = np.random.default_rng(0).uniform(0, 1, 1000).astype(np.float32)
    assert calibrate(s, np.full(1000, 0.5)) == pytest.approx(s, abs=1e-7)


def test_the_threshold_itself_is_kept_and_the_number_below_is_not():
    t = np.random.default_rng(0).uniform(0.01, 0.99, 20000)
    at = t.astype(np.float32)
    assert (calibrate(at, t) == 0.5).all()
    below = np.nextafter(at, np.float32(0))
    assert (calibrate(below, t) < 0.5).all()
    assert (calibrate(np.nextafter(at, np.float32(1)), t) >= 0.5).all()


def test_the_order_of_scores_stays():
    s = np.linspace(0, 1, 2001, dtype=np.float32)
    for t in (0.05, 0.3, 0.77, 0.95):
        assert (np.diff(calibrate(s, np.full(len(s), t))) > 0).all()


def test_none():
    assert calibrate(np.zeros(0, np.float32), np.zeros(0)).shape == (0,)


def test_linear_weights():
    s = np.float32([0.5, 0.6, 0.75, 0.9, 1.0])
    assert linear_weights(s, 0.5) == pytest.approx([0.25, 0.4, 0.625, 0.85, 1.0])
    assert linear_weights(s, np.float32([0.5, 0.5, 0.7, 0.8, 0.9]), w_min=0) == pytest.approx(
        [0, 0.2, 1 / 6, 0.5, 1], rel=1e-5
    )


def test_modes_of_weights():
    s = np.float32([0.5, 0.75])
    found = {mode: weights(mode, s, 0.5, 0.5).tolist() for mode in WEIGHT_MODES}
    assert found == {"none": [1, 1], "score": [0.5, 0.75], "linear": [0.5, 0.75]}
    with pytest.raises(ConfigError, match="'square'; they must be one of none, score, linear"):
        weights("square", s, 0.5)
