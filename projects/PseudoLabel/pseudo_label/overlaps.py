"""Which boxes of the same image overlap, for all images of a shard at once.

Symbols: n, m boxes; p pairs of them; w a width. All of it in float64.
"""

from collections.abc import Callable

import numpy as np

_MOST_PAIRS = 2**20  # looked at in one go: 8 MiB for each number of a pair
_FAR = 1e6  # pixels
_SLACK = 0.01  # pixels, for rounding


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (...) of boxes (..., 4), one by one.

    A box without area, or with a number that is none, overlaps nothing.

    >>> box, roi = np.array([0, 0, 20, 20]), np.array([5, 5, 25, 25])
    >>> round(float(iou(box, roi)), 3)
    0.391
    """
    shared = _intersection(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = shared / (_area(a) + _area(b) - shared)
    return np.where(share > 0, share, 0.0)


def own_share(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which share (...) of each box ``a`` (..., 4) lies in the box ``b`` (..., 4).

    >>> box, roi = np.array([0, 0, 20, 20]), np.array([5, 5, 25, 25])
    >>> float(own_share(roi, box))
    0.5625
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = _intersection(a, b) / _area(a)
    return np.where(share > 0, share, 0.0)


def _area(box: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        sides = np.asarray(box)[..., 2:].astype(np.float64) - np.asarray(box)[..., :2]
        return np.prod(np.maximum(sides, 0), axis=-1)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    corners = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    return _area(np.concatenate(corners, axis=-1))


def groups(image: np.ndarray, category: np.ndarray) -> np.ndarray:
    """(n,) int64, a number for each image and class; in the order of image, then class."""
    return image.astype(np.int64) << 16 | category.astype(np.int64)


def place_in_group(group: np.ndarray) -> np.ndarray:
    """(n,) how many of its group stand before each.

    Args:
        group: (n,) rising.

    >>> place_in_group(np.array([2, 2, 2, 5, 9, 9])).tolist()
    [0, 1, 2, 0, 0, 1]
    """
    return np.arange(len(group)) - np.searchsorted(group, group)


def overlapping(
    group_a: np.ndarray,
    box_a: np.ndarray,
    group_b: np.ndarray,
    box_b: np.ndarray,
    least: float,
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray] = iou,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of boxes of the same group that overlap by ``least`` > 0 or more.

    Args:
        group_a, box_a: (n,) whole numbers and (n, 4).
        group_b, box_b: (m,) and (m, 4).

    Returns:
        numbers (p,) of the first boxes, ascending; of the second ones (p,), ascending for each
        first one; by how much they overlap (p,).
    """
    order, first, count = _candidates(
        group_a, box_a, group_b, box_b, least if measure is iou else 0.0
    )
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for part in _parts(count):
        i = np.repeat(part, count[part])
        j = order[ranges(first[part], count[part])]
        share = measure(box_a[i], box_b[j])
        close = share >= least
        found.append((i[close], j[close], share[close]))
    i, j, share = (np.concatenate(x) for x in zip(*found))
    order = np.lexsort((j, i))
    return i[order], j[order], share[order]


def _candidates(
    group_a: np.ndarray, box_a: np.ndarray, group_b: np.ndarray, box_b: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which boxes may have an IoU of ``least`` with each first one, by their left sides.

    Two such boxes share the part ``least`` of each one's width or more. So if the first is w wide,
    the other begins (1 - least) w to the right of it at most; and as the other is at most
    w / least wide, (1 - least) w / least to the left at most.

    Returns:
        an order (m,) of the second boxes; where in that order the candidates of each first one
        begin (n,), and how many they are (n,).
    """
    names, number_b = np.unique(group_b, return_inverse=True)
    number_a = np.searchsorted(names, group_a)
    there = np.isin(group_a, names)
    # boxes with numbers that are none may go anywhere: they overlap nothing
    left, right = (np.nan_to_num(box_a[:, k].astype(np.float64)) for k in (0, 2))
    width = np.maximum(right - left, 0)
    wider = np.inf if least == 0 else (1 - least) / least
    with np.errstate(invalid="ignore"):
        lowest = np.nan_to_num(left - wider * width, nan=-np.inf)
    place = _place(number_b, np.nan_to_num(box_b[:, 0].astype(np.float64)))
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], _place(number_a, lowest) - _SLACK, "left")
    last = np.searchsorted(
        place[order], _place(number_a, left + (1 - least) * width) + _SLACK, "right"
    )
    return order, first, np.where(there, last - first, 0)


def _place(group: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Numbers in the order of group and then x; what is far outside of images counts as equal."""
    return group * (4 * _FAR) + np.clip(x, -_FAR, _FAR)


def _parts(count: np.ndarray) -> list[np.ndarray]:
    """Numbers of the first boxes, cut so that a part has no more pairs than fit into memory."""
    numbers = np.arange(len(count))
    cuts = np.diff(np.cumsum(count) // _MOST_PAIRS).nonzero()[0] + 1
    return np.split(numbers, cuts) if len(numbers) else []


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``count`` numbers from each ``first`` on, one range after the other.

    >>> ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist()
    [5, 6, 9, 10, 11]
    """
    before = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(first - before, count)


def without_overlapped(n: int, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Greedy suppression: a box is kept unless a better one that is kept overlaps it.

    Args:
        n: number of boxes.
        better, worse: (p,) the boxes of each overlapping pair; there must be one order of all
            boxes from best to worst that fits them all.

    Returns:
        (n,) bool, which are kept.

    >>> without_overlapped(3, np.array([0, 1]), np.array([1, 2])).tolist()
    [True, False, True]
    """
    removed = np.zeros(n, bool)
    while len(better):
        beaten = np.zeros(n, bool)
        beaten[worse] = True
        # nothing that is left can remove these, so they are kept, and remove in turn
        removed[worse[~beaten[better]]] = True
        open_ = ~(removed[better] | removed[worse])
        better, worse = better[open_], worse[open_]
    return ~removed
