"""The score of a rank among any number of detections, in constant memory.

Symbols: n detections, C classes.
"""

import numpy as np

_BITS = 15  # bits of a half: those of a float32 of at most 1 are below 2**30


class ScoreRanks:
    """Exact scores of given ranks, class by class, in two passes over the same detections.

    The bits of positive float32 numbers, read as whole numbers, are in the order of the numbers.
    The first pass (:meth:`add`) counts by their upper half; the second (:meth:`refine`) counts by
    their lower half where, after the first, the rank must be.

    >>> ranks, categories = ScoreRanks(2), np.array([0, 0, 0, 1])
    >>> scores = np.float32([0.25, 0.75, 0.5, 0.125])
    >>> ranks.add(categories, scores)
    >>> ranks.choose([2, 5])
    >>> ranks.refine(categories, scores)
    >>> ranks.scores().tolist()
    [0.5, 0.0]
    """

    def __init__(self, num_classes: int):
        self._counts = np.zeros((num_classes, 1 << _BITS), np.int64)
        self._rank = self._upper = None

    def add(self, category: np.ndarray, score: np.ndarray) -> None:
        """First pass.

        Args:
            category, score: (n,) of some detections; the scores float32 in [0, 1].
        """
        self._count(category, _bits(score) >> _BITS)

    def choose(self, ranks: np.ndarray) -> None:
        """Ends the first pass.

        Args:
            ranks: (C,) from 1, the highest score.
        """
        rank = np.asarray(ranks, np.int64)
        self._upper, before = _place(self._counts, rank)
        self._rank = rank - before
        self._counts[:] = 0

    def refine(self, category: np.ndarray, score: np.ndarray) -> None:
        """Second pass, over the same detections as the first."""
        bits = _bits(score)
        matters = bits >> _BITS == self._upper[category]
        self._count(category[matters], bits[matters] & ((1 << _BITS) - 1))

    def scores(self) -> np.ndarray:
        """(C,) float32: 0 where there are less detections than that, infinite for a rank of 0."""
        lower, _ = _place(self._counts, self._rank)
        bits = np.maximum(self._upper, 0) << _BITS | np.maximum(lower, 0)
        scores = bits.astype(np.uint32).view(np.float32)
        scores[self._upper < 0] = 0
        scores[self._rank < 1] = np.inf
        return scores

    def _count(self, category: np.ndarray, bits: np.ndarray) -> None:
        # np.bincount would make a table of this size for every shard
        place, count = np.unique(category.astype(np.int64) << _BITS | bits, return_counts=True)
        self._counts.reshape(-1)[place] += count


def _bits(score: np.ndarray) -> np.ndarray:
    # NaN and negative zero would be above 1
    clean = np.where(score > 0, np.minimum(score, 1), 0).astype(np.float32)
    return clean.view(np.uint32).astype(np.int64)


def _place(counts: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which bin (C,) the rank falls into, counted from the highest; how many are above that (C,).

    The bin is -1 where there are less, or the rank is below 1.
    """
    bins, above = np.full(len(rank), -1), np.zeros(len(rank), np.int64)
    for c in (rank >= 1).nonzero()[0]:
        cumulated = counts[c].cumsum()
        # so many come before it from the lowest
        before = cumulated[-1] - rank[c]
        if before >= 0:
            bins[c] = np.searchsorted(cumulated, before, "right")
            above[c] = cumulated[-1] - cumulated[bins[c]]
    return bins, above
