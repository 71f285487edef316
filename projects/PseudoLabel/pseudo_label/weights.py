"""How much each pseudo box counts in a training."""

import numpy as np

from kd_d2.config.rules import ConfigError

WEIGHT_MODES = ("none", "score", "linear")


def linear_weights(scores: np.ndarray, t: np.ndarray, w_min: float = 0.25) -> np.ndarray:
    """From ``w_min`` at the threshold up to 1 at a score of 1.

    Args:
        scores: (n,), none below its threshold.
        t: (n,) or a number, the thresholds, below 1.

    Returns:
        (n,) float32.

    >>> linear_weights(np.float32([0.5, 0.6, 0.75, 0.9, 1.0]), 0.5).round(6).tolist()
    [0.25, 0.4000000059604645, 0.625, 0.8500000238418579, 1.0]
    """
    s, t = (np.asarray(x, np.float32).astype(np.float64) for x in (scores, t))
    return (w_min + (1 - w_min) * (s - t) / (1 - t)).astype(np.float32)


def weights(mode: str, scores: np.ndarray, t: np.ndarray, w_min: float = 0.25) -> np.ndarray:
    """Weights (n,) float32 of pseudo boxes: all 1 ("none"), their "score", or "linear" in it.

    Raises:
        ConfigError: there is no such mode.
    """
    if mode == "linear":
        return linear_weights(scores, t, w_min)
    if mode == "score":
        return np.asarray(scores, np.float32)
    if mode == "none":
        return np.ones(len(scores), np.float32)
    raise ConfigError(f"Weights are {mode!r}; they must be one of {', '.join(WEIGHT_MODES)}.")
