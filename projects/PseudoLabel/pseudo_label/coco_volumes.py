"""A run's labels as COCO files of up to so many images each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


class CocoVolumes:
    """``pseudo*.json`` and, where ignore boxes are apart, ``ignore*.json`` of the same images.

    The ids of pseudo boxes go on from file to file, and so do those of ignore boxes apart.
    """

    def __init__(
        self,
        folder: Path,
        labels: LabelledRun,
        category_ids: np.ndarray,
        made_of: dict[str, Any],
        *,
        weight_mode: str,
        w_min: float,
        limit: int,
        ignore: str,
    ):
        """
        Args:
            category_ids: id of each unified category.
            made_of: what ``info`` says under "pseudo".
            weight_mode, w_min, ignore: as in the export's settings.
            limit: images of a file.
        """
        self._labels, self._ids, self._limit, self._ignore = labels, category_ids, limit, ignore
        self._weighting = (weight_mode, w_min)
        self._folder, self._made_of = folder, made_of
        self.names = {"pseudo": volume_names("pseudo", labels.num_used, limit)}
        if ignore == "separate":
            self.names["ignore"] = volume_names("ignore", labels.num_used, limit)
        known = category_ids[labels.known > 0].tolist()
        self._covered = known if len(known) < len(category_ids) else None
        self._next = dict.fromkeys(self.names, 1)
        self._volume, self._open_files = 0, self._opened(0)
        self._room = limit

    def add(self, part: LabelledShard) -> None:
        chosen = part.used_images
        while len(chosen):
            if not self._room:
                self._close_files()
                self._volume, self._room = self._volume + 1, self._limit
                self._open_files = self._opened(self._volume)
            self._add(part, chosen[: self._room])
            chosen, self._room = chosen[self._room :], max(self._room - len(chosen), 0)

    def close(self) -> None:
        self._close_files()

    def _add(self, part: LabelledShard, chosen: np.ndarray) -> None:
        """Adds some images of a shard, given by their positions in it, and their boxes."""
        lines = []
        for i in chosen.tolist():
            height, width = part.sizes[i].tolist()
            lines.append(image_line(part.records[i], height, width, self._covered))
        for file in self._open_files.values():
            file.images.extend(lines)
        first, last = part.shard.first + chosen[0], part.shard.first + chosen[-1]
        kept, ignored = (
            x[np.searchsorted(x.image, first) : np.searchsorted(x.image, last, side="right")]
            for x in (part.kept, part.ignored)
        )
        thresholds = self._labels.t_keep[kept.category].astype(np.float64)
        mode, w_min = self._weighting
        self._add_boxes("pseudo", part, kept, weights(mode, kept.score, thresholds, w_min), False)
        if self._ignore != "none":
            target = "ignore" if self._ignore == "separate" else "pseudo"
            self._add_boxes(target, part, ignored, np.zeros(len(ignored)), True)

    def _add_boxes(
        self, name: str, part: LabelledShard, found: Detections, weight: np.ndarray, ignore: bool
    ) -> None:
        teachers: Sequence[str] = [t.name for t in self._labels.run.teachers]
        lines = annotation_lines(
            found, part.ids_of(found), self._ids, weight, teachers, self._next[name], ignore
        )
        self._open_files[name].annotations.extend(lines)
        self._next[name] += len(lines)

    def _opened(self, volume: int) -> dict[str, CocoFile]:
        teachers = ", ".join(t.name for t in self._labels.run.teachers)
        categories = [
            {"id": i, "name": name, "supercategory": ""}
            for i, name in zip(self._ids.tolist(), self._labels.categories, strict=True)
        ]
        files = {}
        for name, paths in self.names.items():
            kind = "Pseudo boxes" if name == "pseudo" else "Ignore boxes"
            info = {
                "description": f"{kind}, made by the detectors {teachers}",
                "version": kd_d2.__version__,
                "pseudo": self._made_of,
            }
            files[name] = CocoFile(self._folder / paths[volume], info, categories)
        return files

    def _close_files(self) -> None:
        for file in self._open_files.values():
            file.close()
