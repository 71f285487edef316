"""Scores of several teachers on a common scale, where each one's own threshold is 0.5."""

import numpy as np


def calibrate(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """s / 2t below the threshold t, and 0.5 + 0.5 (s - t) / (1 - t) from there on.

    So a score is at least 0.5 exactly where it reaches its threshold.

    Args:
        scores: (n,) in [0, 1].
        thresholds: (n,) in (0, 1), of each detection's teacher and class.

    Returns:
        (n,) float32.

    >>> calibrate(np.float32([0.15, 0.3, 0.65, 1]), np.float32([0.3, 0.3, 0.3, 0.3])).tolist()
    [0.25, 0.5, 0.75, 1.0]
    """
    # a threshold that no float32 hits must not lie above the score that was meant
    s, t = (np.asarray(x, np.float32).astype(np.float64) for x in (scores, thresholds))
    return np.where(s < t, s / (2 * t), 0.5 + 0.5 * (s - t) / (1 - t)).astype(np.float32)
