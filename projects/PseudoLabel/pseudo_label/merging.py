"""Makes one set of boxes of what several teachers found, image by image and class by class.

The detections are of unified classes, with scores on a common scale. The best come first: by
falling score, of equal ones by the teacher's number, then as they stood. A box with a number that
is none overlaps nothing, and stays.

Symbols: n detections, C classes, T teachers, p pairs, g groups: an image and a class each.
"""

from collections.abc import Mapping

import numpy as np

from kd_d2.config.rules import ConfigError

from .detections import Detections
from .overlaps import groups, overlapping, ranges, without_overlapped
from .overlaps import iou as iou_of

SCORE_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")


def merge_nms(d: Detections, iou: float = 0.6) -> Detections:
    """Non-maximum suppression: of boxes that overlap by more than ``iou``, the best.

    Its votes are the teachers that have a box of the class there, kept or not.
    """
    d = best_first(d)
    i, j, _ = _overlaps(d, iou)
    kept = _kept(len(d), i, j)
    of_kept = kept[i]
    return _of_groups(d, kept, i[of_kept], j[of_kept])


def merge_vote(
    d: Detections, known: np.ndarray, iou: float = 0.5, min_votes: int = 2
) -> Detections:
    """Boxes that several teachers agree on: the best of each cluster with enough teachers in it.

    The best boxes, of which none overlaps another by more than ``iou``, are the clusters' heads;
    every other box joins, of the heads that are better than it, the one that it overlaps most, of
    equal ones the better.

    Args:
        known: (C,) how many teachers know each class; where these are fewer than ``min_votes``, all
            of them must agree.
    """
    d = best_first(d)
    i, j, share = _overlaps(d, iou)
    kept = _kept(len(d), i, j)
    joins = kept[i] & (i < j) & ~kept[j]
    i, j, share = i[joins], j[joins], share[joins]
    order = np.lexsort((i, -share, j))
    i, j = i[order], j[order]
    closest = np.diff(j, prepend=-1) > 0
    merged = _of_groups(d, kept, i[closest], j[closest])
    return merged[merged.votes >= np.minimum(known, min_votes)[merged.category]]


def best_first(d: Detections) -> Detections:
    """By image, then by class, then the best first."""
    return d[np.lexsort((d.teacher, -d.score, d.category, d.image))]


def _overlaps(d: Detections, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a group, both ways round, that overlap by more than ``iou``, and how much."""
    group = groups(d.image, d.category)
    i, j, share = overlapping(group, d.box, group, d.box, iou)
    close = (share > iou) & (i != j)
    return i[close], j[close], share[close]


def _kept(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return without_overlapped(n, i[i < j], j[i < j])


def _of_groups(d: Detections, kept: np.ndarray, head: np.ndarray, member: np.ndarray) -> Detections:
    """The boxes that are kept, with the votes of themselves and of the (p,) others with them."""
    own = kept.nonzero()[0]
    head, member = np.append(head, own), np.append(member, own)
    d.votes = _num_teachers(head, d.teacher[member], len(d))
    return d[kept]


def _num_teachers(cluster: np.ndarray, teacher: np.ndarray, num_clusters: int) -> np.ndarray:
    """(num_clusters,) how many different teachers have a box in each cluster."""
    pairs = np.unique(cluster.astype(np.int64) << 16 | teacher)
    return np.bincount(pairs >> 16, minlength=num_clusters)


def merge_wbf(
    d: Detections,
    known: np.ndarray,
    iou: float = 0.55,
    score_type: str = "avg",
    weights: np.ndarray | None = None,
) -> Detections:
    """Weighted boxes fusion (arXiv 1910.13302), as its authors' ``ensemble_boxes`` does it.

    The best box first, each joins the cluster whose box, as it is by then, overlaps it most and by
    more than ``iou``, or opens a new one. The box of a cluster is the mean of its members, weighted
    by their scores. Its score, for "avg", is their mean score times min(n, M) / M for n boxes of M
    teachers. Unlike there, M counts the teachers that know the class: those that cannot find it say
    nothing against it. Scores end at 1.

    Args:
        known: (C,) M of each class.
        score_type: one of ``SCORE_TYPES``.
        weights: (T, C) how much each teacher counts for each class, 0 where it does not know it;
            None: all alike.

    Returns:
        the fused boxes; ``teacher`` and ``agreement`` are those of a cluster's best box.
    """
    if score_type not in SCORE_TYPES:
        raise ConfigError(f"There is no score type {score_type!r}: {', '.join(SCORE_TYPES)}.")
    weight = np.ones(len(d)) if weights is None else weights[d.teacher, d.category]
    order = np.lexsort((d.teacher, -d.score * weight, d.category, d.image))
    d, weight = d[order], weight[order]
    mass = d.score * weight
    cluster, box = _fuse(groups(d.image, d.category), d.box.astype(np.float64), mass, iou)
    used, first, cluster = np.unique(cluster, return_index=True, return_inverse=True)
    merged = d[first]
    merged.box = box[used].astype(np.float32)
    merged.votes = _num_teachers(cluster, d.teacher, len(used)).astype(np.int16)
    share = known[merged.category] if weights is None else weights.sum(0)[merged.category]
    size = np.bincount(cluster, minlength=len(used))
    total = np.bincount(cluster, mass, len(used))
    if score_type == "max":
        highest = 1.0 if weights is None else weights.max(0)[merged.category]
        score = mass[first] / highest
    elif score_type == "avg":
        score = total / size * np.minimum(size, known[merged.category]) / share
    else:
        present = _weight_of_teachers(cluster, d.teacher, weight, len(used))
        of_boxes = np.bincount(cluster, weight, len(used))
        if score_type == "box_and_model_avg":
            score = total / of_boxes * present / share
        else:
            score = total / (of_boxes + share - present)
    merged.score = np.minimum(score, 1).astype(np.float32)
    return merged


def _weight_of_teachers(
    cluster: np.ndarray, teacher: np.ndarray, weight: np.ndarray, num_clusters: int
) -> np.ndarray:
    """(num_clusters,) sum of the weights of the different teachers in each cluster."""
    pairs, first = np.unique(cluster.astype(np.int64) << 16 | teacher, return_index=True)
    return np.bincount(pairs >> 16, weight[first], num_clusters)


def _fuse(
    group: np.ndarray, box: np.ndarray, mass: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters the boxes of all groups: step k deals with the k-th best box of every group.

    Args:
        group: (n,) rising; within a group, the best come first.
        mass: (n,) how much each box counts in the mean.

    Returns:
        (n,) the cluster of each box; (n, 4) the clusters' boxes. The clusters of a group have
        numbers from that of its first box on.
    """
    _, start, size = np.unique(group, return_index=True, return_counts=True)
    start, size = (x[np.argsort(-size, kind="stable")] for x in (start, size))
    opened = np.zeros(len(start), np.int64)
    cluster, box = np.zeros(len(group), np.int64), np.where(np.isfinite(mass)[:, None], box, np.nan)
    mass = np.maximum(mass, np.finfo(np.float64).tiny)  # boxes of score 0 have a mean, too
    fused = box.copy()
    sum_mass, sum_box = np.zeros(len(group)), np.zeros_like(fused)
    for k in range(size.max(initial=0)):
        active = slice(np.searchsorted(-size, -k, "left"))  # groups with more than k boxes
        i = start[active] + k
        target, joins = _closest(start[active], opened[active], fused, box[i], iou)
        cluster[i] = target
        opened[active] += ~joins
        sum_mass[target] += mass[i]
        sum_box[target] += mass[i, None] * box[i]
        mean = sum_box[target] / sum_mass[target, None]
        fused[target] = np.where(joins[:, None], mean, box[i])
    return cluster, fused


def _closest(
    start: np.ndarray, opened: np.ndarray, fused: np.ndarray, box: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """For the next box (g, 4) of each group: which cluster it goes to (g,), and whether it joins.

    Args:
        start, opened: (g,) number of the group's first cluster, and how many it has.
        fused: (n, 4) the clusters' boxes.
    """
    if not opened.any():
        return start, np.zeros(len(start), bool)
    row, slot = np.repeat(np.arange(len(start)), opened), ranges(start, opened)
    share = iou_of(fused[slot], box[row])
    begin = np.cumsum(opened) - opened
    best = np.maximum.reduceat(share, begin)
    first = np.minimum.reduceat(np.where(share == best[row], slot, len(fused)), begin)
    joins = best > iou
    return np.where(joins, first, start + opened), joins


def keep_children(
    d: Detections, parents: Mapping[int, int], iou: float = 0.7, least: np.ndarray | None = None
) -> Detections:
    """Leaves out boxes of a parent class that a box of a child, or of its children, overlaps.

    Args:
        parents: class of a child -> class of its parent.
        iou: they must overlap by more than this.
        least: (C,) scores below it leave nothing out, so that an object is not lost to a guess
            about its kind.
    """
    covered = np.zeros(len(d), bool)
    sure = ~covered if least is None else d.score >= np.float32(least)[d.category]
    for child, parent in parents.items():
        while parent is not None:
            a = ((d.category == parent) & ~covered).nonzero()[0]
            b = ((d.category == child) & sure).nonzero()[0]
            i, _, share = overlapping(d.image[a], d.box[a], d.image[b], d.box[b], iou)
            covered[a[i[share > iou]]] = True
            parent = parents.get(parent)
    return d[~covered]
