"""Compares the detections of one image with its ground truth by CrowdHuman's rules.

Crowds need rules of their own: one IoU threshold, and regions that nobody was asked to label, in
which a detection counts neither for nor against the detector (arXiv 1805.00123).

Shapes: D detections, G objects, K ignore regions, each for one image and one class. All of it in
float64 NumPy.
"""

from typing import NamedTuple

import numpy as np

__all__ = [
    "DROPPED",
    "FALSE_POSITIVE",
    "TRUE_POSITIVE",
    "ImageOverlaps",
    "corners_in_image",
    "match_detections",
    "overlaps_of_image",
    "pairwise_coverage",
    "pairwise_iou",
]

# All overlaps must be larger than this.
_THRESHOLD = 0.5
_EPS = 1e-6

FALSE_POSITIVE, TRUE_POSITIVE, DROPPED = 0, 1, 2


class ImageOverlaps(NamedTuple):
    """How the detections of an image lie to its ground truth.

    Attributes:
        scores: (D,) of the detections, in descending order.
        iou: (D, G) with the objects.
        ignored: (D,) bool, detections that lie in an ignore region by more than half.
        ignored_objects: (G,) bool, objects that do.
    """

    scores: np.ndarray
    iou: np.ndarray
    ignored: np.ndarray
    ignored_objects: np.ndarray


def corners_in_image(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Clip boxes to an image: the upper left corner to its last pixel, the other to its border.

    Args:
        boxes: (..., 4) x, y, width, height in pixels.

    Returns:
        (..., 4) x1, y1, x2, y2. A box to the right of the image or below becomes a strip of one
        pixel at the border; one on the other sides has no area.

    >>> corners_in_image(np.array([[-5, 10, 40, 200], [300, 10, 20, 20]]), 200, 100).tolist()
    [[0.0, 10.0, 35.0, 100.0], [199.0, 10.0, 200.0, 30.0]]
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    corners = np.concatenate((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), axis=-1)
    return corners.clip(0, [width - 1, height - 1, width, height])


def pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (A, B) of boxes (A, 4) and (B, 4), given by their corners.

    >>> pairwise_iou(np.array([[0.0, 0, 4, 2]]), np.array([[2.0, 0, 6, 2], [4, 0, 6, 2]])).round(4)
    array([[0.3333, 0.    ]])
    """
    inside = _intersections(first, second)
    return inside / (_areas(first)[:, None] + _areas(second) - inside + _EPS)


def pairwise_coverage(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The share (A, B) of each box (A, 4) that lies in each region (B, 4), given by their corners.

    >>> pairwise_coverage(np.array([[0.0, 0, 4, 2]]), np.array([[2.0, 0, 90, 90]])).round(4)
    array([[0.5]])
    """
    return _intersections(boxes, regions) / (_areas(boxes)[:, None] + _EPS)


def _intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    sides = [
        np.minimum(first[:, None, k + 2], second[:, k + 2])
        - np.maximum(first[:, None, k], second[:, k])
        for k in (0, 1)
    ]
    return sides[0].clip(min=0) * sides[1].clip(min=0)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps_of_image(
    detections: np.ndarray,
    scores: np.ndarray,
    objects: np.ndarray,
    regions: np.ndarray,
    size: tuple[float, float],
) -> ImageOverlaps:
    """Clip all boxes, put the detections in the order of their scores, and compare.

    Args:
        detections: (D, 4) x, y, width, height in pixels of the original image.
        scores: (D,). Detections of equal scores keep their order.
        objects: (G, 4), likewise.
        regions: (K, 4), likewise.
        size: width and height of the image.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, objects, regions = (
        corners_in_image(x, *size) for x in (detections[order], objects, regions)
    )
    return ImageOverlaps(
        scores=scores[order],
        iou=pairwise_iou(boxes, objects),
        ignored=(pairwise_coverage(boxes, regions) > _THRESHOLD).any(1),
        ignored_objects=(pairwise_coverage(objects, regions) > _THRESHOLD).any(1),
    )


def edges(iou: np.ndarray) -> np.ndarray:
    """Which pairs overlap enough to be a match: bool, of the shape of ``iou``."""
    return iou > _THRESHOLD


def match_detections(image: ImageOverlaps) -> np.ndarray:
    """Tell hits from false alarms, the best detection first.

    A detection finds the object with the largest IoU among those not found yet (the first of equal
    ones), if it is above 0.5. What finds none is dropped in an ignore region and wrong elsewhere.

    Returns:
        (D,) ``TRUE_POSITIVE``, ``FALSE_POSITIVE`` or ``DROPPED``, in the order of ``image.scores``.

    >>> iou = np.array([[0.9, 0.6], [0.8, 0.4], [0.7, 0.6], [0, 0]])
    >>> scores, ignored = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, False, True])
    >>> match_detections(ImageOverlaps(scores, iou, ignored, np.zeros(2, bool))).tolist()
    [1, 0, 1, 2]
    """
    kinds = np.where(image.ignored, DROPPED, FALSE_POSITIVE)
    free = image.iou.copy()
    # most detections overlap with nothing and need no loop
    for k in np.flatnonzero(edges(free).any(1)):
        best = free[k].argmax()
        if free[k, best] > _THRESHOLD:
            kinds[k] = TRUE_POSITIVE
            free[:, best] = 0
    return kinds
