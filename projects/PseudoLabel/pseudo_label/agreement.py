"""How often teachers find the same objects.

Symbols: T teachers, C unified classes.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from .class_map import Unified
from .detections import Detections
from .overlaps import groups, overlapping

_SAME_BOX = 0.5


class TeacherAgreement:
    """Which share of each teacher's boxes each other one has found, too, counted shard by shard.

    That is, has a box of the same class at an IoU of 0.5 or more. Boxes of classes that the other
    one does not know are not counted.
    """

    def __init__(self, unified: Unified):
        num = len(unified.lookup)
        self._knows = np.array([[t in by for by in unified.known_by] for t in range(num)])
        self._boxes, self._matched = np.zeros((2, num, num), np.int64)

    def add(self, parts: Sequence[Detections]) -> None:
        """The boxes of each teacher in the same images, those only that are to be compared."""
        for a, b in permutations(range(len(parts)), 2):
            one, other = parts[a][self._knows[b][parts[a].category]], parts[b]
            of_one, of_other = (groups(d.image, d.category) for d in (one, other))
            i, _, _ = overlapping(of_one, one.box, of_other, other.box, _SAME_BOX)
            self._boxes[a, b] += len(one)
            self._matched[a, b] += len(np.unique(i))

    def shares(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Teacher -> other teacher -> share; None where there is no box to be found."""
        return {
            a: {
                b: float(self._matched[k, m] / n) if (n := self._boxes[k, m]) else None
                for m, b in enumerate(names)
                if m != k
            }
            for k, a in enumerate(names)
        }
