"""Which images of a run a person is to look at, found in one pass over its shards.

Symbols: n rows, C unified categories, k images of a shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kd_d2.visualization.sources import spread

from .detections import Detections
from .labelled_run import LabelledRun, LabelledShard
from .overlaps import place_in_group

_RAREST_EACH = 5  # images of a class, so that the rarest ones are several


@dataclass(frozen=True)
class Cell:
    """An image to be looked at.

    Attributes:
        stratum: why, a key of ``STRATA``.
        image: its number in the run.
        focus: the one detection that it is about, or none.
        count: boxes that it was chosen for.
    """

    stratum: str
    image: int
    focus: Detections = field(default_factory=Detections.empty)
    count: int = 0


class Best:
    """The rows with the lowest keys of each group, of all that were added; never holds more.

    Of equal keys the one that was added first stays.
    """

    def __init__(self, most: int):
        self._most = most
        self._group, self._key = np.zeros(0, np.int64), np.zeros(0)
        self._found = Detections.empty()

    def add(self, group: np.ndarray, key: np.ndarray, found: Detections) -> None:
        """Adds (n,) rows: their groups and keys, and the detections (n) that they stand for."""
        group, key = np.concatenate([self._group, group]), np.concatenate([self._key, key])
        found = Detections.concatenate([self._found, found])
        order = np.lexsort((key, group))
        order = order[place_in_group(group[order]) < self._most]
        self._group, self._key, self._found = group[order], key[order], found[order]

    def add_images(self, images: np.ndarray, key: np.ndarray) -> None:
        """Adds images (n,), all of one group, that stand for no detection."""
        nothing = Detections.make(images, np.zeros((len(images), 4)), np.zeros(len(images)), 0)
        self.add(np.zeros(len(images), np.int64), key, nothing)

    def of_group(self, group: int) -> tuple[np.ndarray, Detections]:
        """Keys, ascending, and detections."""
        chosen = self._group == group
        return self._key[chosen], self._found[chosen]


class Candidates:
    """
    Args:
        cells: how many images a stratum shall have.
        most: and how many those may have that show each class.
        seed: of what is chosen by chance.
    """

    def __init__(self, labels: LabelledRun, cells: int, most: int, seed: int):
        self._labels, self._cells, self._most, self._seed = labels, cells, most, seed
        num_classes = len(labels.categories)
        self._each = max(1, cells // max(num_classes, 1))
        self._kept = np.zeros(num_classes, np.int64)
        self._of_images = {x: Best(cells) for x in ("random", "most", "empty", "disagreement")}
        self._of_classes = {
            "lowest": Best(self._each),
            "dropped": Best(self._each),
            "rarest": Best(_RAREST_EACH),
        }

    def add(self, part: LabelledShard) -> None:
        """Looks through a shard."""
        first, used, kept = part.shard.first, part.used_images, part.kept
        chance = np.random.default_rng([self._seed, first]).random(len(part.shard))
        boxes = part.per_image(kept)
        doubtful = part.per_image(kept[kept.votes < self._labels.known[kept.category]])
        for stratum, images, key in (
            ("random", used, chance),
            ("most", used[boxes[used] > 0], -boxes),
            ("empty", used[boxes[used] == 0], chance),
            ("disagreement", used[doubtful[used] > 0], -doubtful),
        ):
            self._of_images[stratum].add_images(first + images, key[images].astype(np.float64))
        self._of_classes["lowest"].add(kept.category, kept.score, kept)
        dropped = part.merged[part.merged.score < self._labels.t_keep[part.merged.category]]
        self._of_classes["dropped"].add(dropped.category, -dropped.score, dropped)
        # one box of each class in each image: the best, as they are sorted
        pairs = (kept.image - first) * np.int64(len(self._kept)) + kept.category
        best = kept[np.unique(pairs, return_index=True)[1]]
        self._of_classes["rarest"].add(best.category, chance[best.image - first], best)
        self._kept += np.bincount(kept.category, minlength=len(self._kept))

    def chosen(self, stratum: str) -> list[Cell]:
        """The cells of a stratum, in the order in which they are shown."""
        if stratum in self._of_images:
            keys, found = self._of_images[stratum].of_group(0)
            counts = -keys if stratum in ("most", "disagreement") else np.zeros(len(keys))
            return [
                Cell(stratum, image, count=int(count))
                for image, count in zip(found.image.tolist(), counts.tolist())
            ]
        if stratum == "rarest":
            return self._rarest()
        classes: Sequence[int] = range(len(self._kept))
        if len(classes) * self._each > self._most:
            # evenly from frequent to rare
            classes = spread(np.argsort(-self._kept, kind="stable").tolist(), self._most)
        return [x for c in classes for x in self._of_class(stratum, c)]

    def _rarest(self) -> list[Cell]:
        rising = [c for c in np.argsort(self._kept, kind="stable").tolist() if self._kept[c]]
        return [x for c in rising for x in self._of_class("rarest", c)][: self._cells]

    def _of_class(self, stratum: str, category: int) -> list[Cell]:
        _, found = self._of_classes[stratum].of_group(category)
        count = int(self._kept[category])
        return [
            Cell(stratum, image, found[i : i + 1], count)
            for i, image in enumerate(found.image.tolist())
        ]
