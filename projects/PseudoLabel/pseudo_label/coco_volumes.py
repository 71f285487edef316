"""A run's labels as COCO files of up to so many images each.

Symbols: n boxes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kd_d2

from .coco_files import CocoFile, annotation_lines, image_line
from .detections import Detections
from .labelled_run import LabelledRun, LabelledShard
from .weights import weights


def volume_names(stem: str, num_images: int, limit: int) -> list[str]:
    """Names of the files that so many images go to.

    >>> volume_names("pseudo", 20, 20), volume_names("pseudo", 21, 20)
    (['pseudo.json'], ['pseudo_000.json', 'pseudo_001.json'])
    """
    count = -(-num_images // limit)
    return [f"{stem}_{i:03d}.json" for i in range(count)] if count > 1 else [f"{stem}.json"]


class Boxes(NamedTuple):
    """Boxes of a shard for one kind of files.

    Attributes:
        kind: of the files.
        found: sorted by image.
        weights: (n,); None: they are ignore boxes.
    """

    kind: str
    found: Detections
    weights: np.ndarray | None = None


class CocoVolumes:
    """COCO files of the same images: of each kind one, or several where there are too many images.

    The ids of the boxes of a kind go on from file to file.
    """

    def __init__(
        self,
        folder: Path,
        labels: LabelledRun,
        category_ids: np.ndarray,
        made_of: dict[str, Any],
        kinds: Mapping[str, str],
        num_images: int,
        limit: int,
    ):
        """
        Args:
            category_ids: id of each unified category.
            made_of: what ``info`` says under "pseudo".
            kinds: how the names of files begin -> what is in these, for people.
            num_images: that will be added.
            limit: images of a file.
        """
        self._labels, self._ids, self._limit, self._kinds = labels, category_ids, limit, kinds
        self._folder, self._made_of = folder, made_of
        self.names = {kind: volume_names(kind, num_images, limit) for kind in kinds}
        known = category_ids[labels.known > 0].tolist()
        self._covered = known if len(known) < len(category_ids) else None
        self._next = dict.fromkeys(kinds, 1)
        self._volume, self._open_files = 0, self._opened(0)
        self._room = limit

    def add(self, part: LabelledShard, chosen: np.ndarray, boxes: Sequence[Boxes]) -> None:
        """Adds some images of a shard, given by their positions in it, and all their boxes."""
        while len(chosen):
            if not self._room:
                self.close()
                self._volume, self._room = self._volume + 1, self._limit
                self._open_files = self._opened(self._volume)
            self._add(part, chosen[: self._room], boxes)
            chosen, self._room = chosen[self._room :], max(self._room - len(chosen), 0)

    def close(self) -> None:
        for file in self._open_files.values():
            file.close()

    def _add(self, part: LabelledShard, chosen: np.ndarray, boxes: Sequence[Boxes]) -> None:
        lines = []
        for i in chosen.tolist():
            height, width = part.sizes[i].tolist()
            lines.append(image_line(part.records[i], height, width, self._covered))
        for file in self._open_files.values():
            file.images.extend(lines)
        first, last = part.shard.first + chosen[0], part.shard.first + chosen[-1]
        for kind, found, weight in boxes:
            start = np.searchsorted(found.image, first)
            end = np.searchsorted(found.image, last, side="right")
            weight = weight if weight is None else weight[start:end]
            self._add_boxes(part, Boxes(kind, found[start:end], weight))

    def _add_boxes(self, part: LabelledShard, boxes: Boxes) -> None:
        teachers: Sequence[str] = [t.name for t in self._labels.run.teachers]
        kind, found, weight = boxes
        lines = annotation_lines(
            found,
            part.ids_of(found),
            self._ids,
            np.zeros(len(found)) if weight is None else weight,
            teachers,
            self._next[kind],
            ignore=weight is None,
        )
        self._open_files[kind].annotations.extend(lines)
        self._next[kind] += len(lines)

    def _opened(self, volume: int) -> dict[str, CocoFile]:
        teachers = ", ".join(t.name for t in self._labels.run.teachers)
        categories = [
            {"id": i, "name": name, "supercategory": ""}
            for i, name in zip(self._ids.tolist(), self._labels.categories, strict=True)
        ]
        files = {}
        for kind, names in self.names.items():
            info = {
                "description": f"{self._kinds[kind]}, made by the detectors {teachers}",
                "version": kd_d2.__version__,
                "pseudo": self._made_of,
            }
            files[kind] = CocoFile(self._folder / names[volume], info, categories)
        return files


class UsedImages:
    """``pseudo*.json`` and, where ignore boxes are apart, ``ignore*.json`` of the same images."""

    def __init__(self, *args, limit: int, weight_mode: str, w_min: float, ignore: str):
        """
        Args:
            args: the first four of :class:`CocoVolumes`.
            limit: images of a file.
            weight_mode, w_min, ignore: as in the export's settings.
        """
        self._labels: LabelledRun = args[1]
        self._weighting, self._ignore = (weight_mode, w_min), ignore
        kinds = {"pseudo": "Pseudo boxes"}
        if ignore == "separate":
            kinds["ignore"] = "Ignore boxes"
        self._files = CocoVolumes(*args, kinds, self._labels.num_used, limit)

    def add(self, part: LabelledShard) -> None:
        kept, (mode, w_min) = part.kept, self._weighting
        thresholds = self._labels.t_keep[kept.category].astype(np.float64)
        boxes = [Boxes("pseudo", kept, weights(mode, kept.score, thresholds, w_min))]
        if self._ignore != "none":
            kind = "ignore" if self._ignore == "separate" else "pseudo"
            boxes.append(Boxes(kind, part.ignored))
        self._files.add(part, part.used_images, boxes)

    def close(self) -> None:
        self._files.close()


class DroppedImages:
    """``dropped*.json``: all boxes of the images that the filter has dropped, as ignore boxes."""

    def __init__(self, *args, limit: int):
        """Args as of :class:`UsedImages`."""
        labels: LabelledRun = args[1]
        kinds = {"dropped": "Ignore boxes of dropped images"}
        self._files = CocoVolumes(*args, kinds, labels.num_dropped, limit)

    def add(self, part: LabelledShard) -> None:
        self._files.add(part, part.dropped_images, [Boxes("dropped", part.dropped)])

    def close(self) -> None:
        self._files.close()
