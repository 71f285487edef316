"""Images that people have labelled, and which detections in them are right.

Symbols: n detections, m labelled boxes, C unified classes.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from kd_d2.config.rules import ConfigError
from kd_d2.data.reading import read_dataset
from kd_d2.data.requirements import check_available

from .detections import Detections
from .merging import best_first
from .overlaps import groups, overlapping, own_share, place_in_group
from .run_folder import ImageRecord, hash_of


@dataclass
class Labels:
    """Labelled boxes of some images.

    Attributes:
        image: (m,) numbers of the images in the run's list.
        box: (m, 4) x0, y0, x1, y1.
        category: (m,) numbers of the unified classes.
        crowd: (m,) bool, boxes around more objects than anybody has counted.
    """

    image: np.ndarray
    box: np.ndarray
    category: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class LabelSet:
    """Labelled images as Detectron2's catalog has them.

    Attributes:
        dicts: a record for each image, with ``file_name`` and ``annotations``.
        classes: names of the classes by the contiguous ``category_id`` of the annotations.
        name: for people.

    Raises:
        ConfigError: there are no labels.
    """

    dicts: Sequence[Mapping[str, Any]] = field(repr=False)
    classes: Sequence[str]
    name: str = "labels"

    def __post_init__(self):
        if not any("annotations" in record for record in self.dicts):
            raise ConfigError(f"{self.name} has no labelled image: give a data set with labels.")

    def counts(self, names: Sequence[str]) -> np.ndarray:
        """(C,) boxes of each unified class, without crowds."""
        number = self._numbers(names)
        found = [
            number[a["category_id"]]
            for record in self.dicts
            for a in record.get("annotations", ())
            if not a.get("iscrowd", 0)
        ]
        found = np.array(found, np.int64)
        return np.bincount(found[found >= 0], minlength=len(names))

    def digest(self) -> str:
        """Hash of its name, classes, images and boxes."""
        images = [
            [
                record["file_name"],
                record.get("image_id"),
                [
                    [list(a["bbox"]), a["bbox_mode"], a["category_id"], a.get("iscrowd", 0)]
                    for a in record.get("annotations", ())
                ],
            ]
            for record in self.dicts
        ]
        return hash_of([self.name, list(self.classes), images])

    def by_file(self) -> dict[Any, Mapping[str, Any]]:
        """Each image's record by its path, and by its id and name."""
        found: dict[Any, Mapping[str, Any]] = {}
        for record in self.dicts:
            found[os.path.abspath(record["file_name"])] = record
            found[_id_and_name(record.get("image_id"), record["file_name"])] = record
        return found

    def boxes(
        self, images: Iterable[tuple[int, Mapping[str, Any]]], names: Sequence[str]
    ) -> Labels:
        """The labelled boxes of some images: number in the run and record of each."""
        number, rows = self._numbers(names), []
        for image, record in images:
            for a in record.get("annotations", ()):
                box = BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
                rows.append((image, *box, number[a["category_id"]], a.get("iscrowd", 0)))
        table = np.array(rows, np.float64).reshape(-1, 7)
        table = table[table[:, 5] >= 0]
        image, category = table[:, 0].astype(np.int64), table[:, 5].astype(np.int64)
        return Labels(image, table[:, 1:5], category, table[:, 6] > 0)

    def _numbers(self, names: Sequence[str]) -> list[int]:
        """The unified class of each own class, -1 for none."""
        unified = {name: number for number, name in enumerate(names)}
        return [unified.get(name, -1) for name in self.classes]


def labelled_records(name: str) -> list[dict]:
    """The records of a registered data set whose images people have labelled.

    Raises:
        ConfigError: there are images without labels, or no boxes at all.
        ValueError: it cannot be read.
    """
    records = read_dataset(name)
    bare = [x for x in records if "annotations" not in x]
    if bare or not any(x["annotations"] for x in records):
        what = f"images without labels, e.g. {bare[0]['file_name']}" if bare else "no labelled box"
        raise ConfigError(f"The data set '{name}' has {what}: name one that is labelled.")
    return records


def num_labelled(name: str) -> int:
    """Images of :func:`labelled_records`, which are read once in a process."""
    return _num_labelled(name, DatasetCatalog[name])


@functools.cache
def _num_labelled(name: str, load: Callable) -> int:
    return len(labelled_records(name))


def read_label_set(name: str, where: str) -> LabelSet:
    """A registered data set, or one whose name has a known prefix.

    Args:
        where: it is named, for people.

    Raises:
        ConfigError: it has no labels.
        ValueError, OSError: it is unknown, or cannot be read.
    """
    check_available({name: where})
    return LabelSet(read_dataset(name), MetadataCatalog.get(name).thing_classes, name)


def find_record(labelled: Mapping[Any, Mapping[str, Any]], image: ImageRecord):
    """The record of an image of a run in :meth:`LabelSet.by_file`, or None.

    It is of the same path or, where the images have moved, of the same id and file name.
    """
    other = labelled.get(_id_and_name(image.id, image.file_name))
    return labelled.get(os.path.abspath(image.file_name), other)


def _id_and_name(id: int, file_name: str) -> tuple[int, str]:
    return id, os.path.basename(file_name)


def judge(d: Detections, labels: Labels, least: float = 0.5) -> tuple[Detections, np.ndarray]:
    """Which detections have found a labelled box, by COCO's rules.

    The best first, each takes the box of its class that nobody has taken and that it overlaps most,
    if by ``least`` or more. One that has found none but lies in a crowd by that share of itself is
    left out.

    Args:
        d: detections of the labelled images, in unified classes.

    Returns:
        those that count, and which of them are right, bool.
    """
    d = best_first(d)
    group, of_label = groups(d.image, d.category), groups(labels.image, labels.category)
    rank = place_in_group(group)
    single, crowd = ~labels.crowd, labels.crowd
    i, j, share = overlapping(group, d.box, of_label[single], labels.box[single], least)
    order = np.lexsort((j, -share, i, rank[i]))
    i, j = i[order], j[order]
    hit, taken = np.zeros(len(d), bool), np.zeros(single.sum(), bool)
    # no two detections of a step want the same box, as they are of different groups
    for step in np.split(np.arange(len(i)), np.diff(rank[i]).nonzero()[0] + 1):
        free = step[~taken[j[step]]]
        closest = free[np.diff(i[free], prepend=-1) != 0]
        hit[i[closest]] = True
        taken[j[closest]] = True
    in_crowd, _, _ = overlapping(group, d.box, of_label[crowd], labels.box[crowd], least, own_share)
    counts = np.ones(len(d), bool)
    counts[in_crowd] = False
    counts |= hit
    return d[counts], hit[counts]
