"""The Jaccard index of detections and objects, at the best score threshold (arXiv 2003.09163)."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from .crowd_matching import ImageOverlaps, edges

__all__ = ["SCORE_THRESHOLDS", "image_jaccard", "jaccard_index", "maximum_weight_matching"]

SCORE_THRESHOLDS = 0.1 * np.arange(10)  # these products: 0.30000000000000004, for one
_EPS = 1e-6


def maximum_weight_matching(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of detections and objects with IoU > 0.5 that have the largest sum of IoUs.

    Args:
        iou: (D, G).

    Returns:
        indices of the matched detections and objects, both (k,).

    >>> maximum_weight_matching(np.array([[0.9, 0.8, 0], [0.8, 0, 0], [0.4, 0, 0.5]]))
    (array([0, 1]), array([1, 0]))
    """
    edge = edges(iou)
    # without the detections and objects that have no edge the problem is small
    rows, columns = np.flatnonzero(edge.any(1)), np.flatnonzero(edge.any(0))
    part = np.ix_(rows, columns)
    # the solver pairs all that it can: pairs of weight 0 are none
    first, second = linear_sum_assignment(np.where(edge, iou, 0)[part], maximize=True)
    real = edge[part][first, second]
    return rows[first[real]], columns[second[real]]


def image_jaccard(image: ImageOverlaps) -> tuple[np.ndarray, np.ndarray]:
    """The Jaccard index of one image at each of ``SCORE_THRESHOLDS``.

    Unmatched detections and unmatched objects that lie in an ignore region do not count.

    Returns:
        matched / (detections + objects - matched), (10,); whether the image has anything that
        counts, (10,) bool.

    >>> no = np.zeros(2, bool)
    >>> ratio, counts = image_jaccard(
    ...     ImageOverlaps(np.array([0.75, 0.35]), np.array([[0.9], [0.6]]), no, no[:1]))
    >>> ratio.round(2).tolist(), bool(counts.all())
    ([0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], True)
    """
    kept = (image.scores > SCORE_THRESHOLDS[:, None]).sum(1)  # the first ones, as they are sorted
    distinct, index = np.unique(kept, return_inverse=True)
    sizes = [_sizes(image, count) for count in distinct]
    matched, detections, objects = np.array(sizes)[index].T
    ratio = matched / (objects + detections - matched + _EPS)
    return ratio, (objects != 0) | (detections != 0)


def _sizes(image: ImageOverlaps, count: int) -> tuple[int, int, int]:
    """How many pairs, detections and objects there are with the best ``count`` detections."""
    detections, objects = maximum_weight_matching(image.iou[:count])
    dropped = image.ignored[:count].sum() - image.ignored[detections].sum()
    excused = image.ignored_objects.sum() - image.ignored_objects[objects].sum()
    return len(detections), count - dropped, image.iou.shape[1] - excused


def jaccard_index(ratios: np.ndarray, num_images: np.ndarray) -> float:
    """The largest mean ratio over the thresholds, a fraction.

    Args:
        ratios: (10,) sums over the images.
        num_images: (10,) how many of them have anything that counts.

    >>> jaccard_index(np.array([3.0, 2.0, 0.0]), np.array([4, 2, 0]))
    1.0
    """
    return float((ratios / num_images.clip(min=1)).max())
