"""Average precision and log-average miss rate of the detections of a data set.

The miss rate follows Dollar et al. (Pedestrian Detection: An Evaluation of the State of the Art,
PAMI 2012), in the variant of CrowdHuman (arXiv 1805.00123). All values are fractions, not percent.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["DetectionCurve", "average_precision", "detection_curve", "log_average_miss_rate"]

# Nine points from 0.01 to 1, even in their logarithms; the rounded values are part of the metric.
_FALSE_ALARMS = (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000)


class DetectionCurve(NamedTuple):
    """What a detector does as its score threshold sinks; each (D,), D the detections that count.

    Attributes:
        recall: share of the objects that are found.
        precision: share of the detections that are right.
        false_alarms: false positives per image.
    """

    recall: np.ndarray
    precision: np.ndarray
    false_alarms: np.ndarray


def detection_curve(
    scores: np.ndarray, correct: np.ndarray, num_objects: int, num_images: int
) -> DetectionCurve:
    """Pool the detections of all images.

    Args:
        scores: (D,). Detections of equal scores keep their order.
        correct: (D,) bool, whether they are true positives.
        num_objects: of all images, at least 1.
        num_images: those without detections, too, at least 1.

    >>> curve = detection_curve(np.array([0.5, 0.9]), np.array([False, True]), 2, 4)
    >>> [x.tolist() for x in curve]
    [[0.5, 0.5], [1.0, 0.5], [0.0, 0.25]]
    """
    found = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    count = np.arange(1, len(found) + 1)
    return DetectionCurve(found / num_objects, found / count, (count - found) / num_images)


def average_precision(curve: DetectionCurve) -> float:
    """The area under precision over recall: trapezoids of the raw curve, without an envelope.

    What lies before the first detection counts nothing, so even a perfect detector stays below 1.

    >>> round(average_precision(DetectionCurve(
    ...     np.array([0.25, 0.25, 0.5]), np.array([1, 0.5, 0.6]), np.array([0, 0.5, 0.5]))), 6)
    0.1375
    """
    heights = (curve.precision[1:] + curve.precision[:-1]) / 2
    return float((np.diff(curve.recall) * heights).sum())


def log_average_miss_rate(curve: DetectionCurve) -> float:
    """The geometric mean of the miss rates at nine numbers of false alarms per image (MR^-2).

    Each is read off at the first detection that brings so many, or at the last one. Without
    detections all is missed. A point at which nothing is missed makes the mean 0.

    >>> log_average_miss_rate(DetectionCurve(*np.array([[0.5, 0.75], [1, 0.6], [0, 1]])))
    0.25
    """
    if not len(curve.recall):
        return 1.0
    first = np.searchsorted(curve.false_alarms, _FALSE_ALARMS)  # false alarms never sink
    missed = 1 - curve.recall[first.clip(max=len(curve.recall) - 1)]
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(missed).mean()))
