"""Numbers about a run by which a person can judge its labels.

Symbols: C unified categories, k images of a shard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_d2.config.rules import ConfigError

from .filter import STATUS_NAMES
from .label_quality import Quality, QualityMeter
from .label_set import LabelSet
from .labelled_run import LabelledRun, LabelledShard
from .run_folder import RunFolder
from .shards import FAILED, USED
from .speed import speeds

SCORE_BINS = 20
MOST_BOXES = 100
"""The last bar of the histogram of boxes per image: so many, or more."""
AREAS = {"small": 32**2, "medium": 96**2, "large": float("inf")}
"""Boxes below this area, by COCO's names."""
MOST_OFTEN = 3.0
"""A class that is so many times more or less frequent than among labels raises an alarm."""
LEAST_BOXES = 10
"""Fewer boxes say nothing about a class."""


@dataclass
class ClassStatistics:
    """
    Attributes:
        thresholds: teacher that knows the class -> its threshold, on its own scale.
        t_keep, t_ignore: those of the merged scores.
        raw: merged detections in images that were read.
        kept, ignored: pseudo boxes and ignore boxes of images that are used.
        scores: ``SCORE_BINS`` numbers of merged detections, of scores from 0 to 1.
        sizes: number of pseudo boxes by the names of ``AREAS``.
        share, labelled_share: among the boxes of all classes that people have labelled, pseudo
            boxes and theirs; None without labels of the class.
        quality: where people have labelled images of the run.
    """

    name: str
    thresholds: dict[str, float]
    t_keep: float
    t_ignore: float
    raw: int
    kept: int
    ignored: int
    scores: list[int]
    sizes: dict[str, int]
    share: float | None = None
    labelled_share: float | None = None
    quality: Quality | None = None

    @property
    def share_ratio(self) -> float | None:
        """How many times more frequent than among labels."""
        return self.share / self.labelled_share if self.labelled_share else None

    @property
    def unlabelled(self) -> bool:
        """Whether it has pseudo boxes, but no box in labels that are about it."""
        return self.labelled_share == 0 and self.kept >= LEAST_BOXES

    @property
    def alarm(self) -> bool:
        """Whether the class is far more or less frequent than among labels."""
        if self.unlabelled:
            return True
        ratio = self.share_ratio
        return ratio is not None and not 1 / MOST_OFTEN <= ratio <= MOST_OFTEN


@dataclass
class Statistics:
    """
    Attributes:
        images: number of "all", "read", those of each status by its name in ``STATUS_NAMES``, and
            those that are used "without_boxes".
        boxes_per_image: number of used images with 0, 1, ..., ``MOST_BOXES`` or more pseudo boxes.
        filters: how many detections fell to each filter.
        agreement: teacher -> other teacher -> share of its boxes that the other has found, too.
        throughput: teacher -> what ``speeds`` says of it.
        labelled: name of the data set that shares are compared with.
        quality: of all classes.
        quality_images: "used" and "dropped" ones that people have labelled.
        quality_by_source: without AP, if people have labelled images of several sources.
    """

    images: dict[str, int]
    boxes_per_image: list[int]
    mean_boxes: float
    classes: list[ClassStatistics]
    filters: dict[str, int]
    agreement: Mapping[str, Mapping[str, float | None]]
    throughput: dict[str, dict[str, Any]]
    labelled: str | None = None
    quality: Quality | None = None
    quality_images: dict[str, int] | None = None
    quality_by_source: dict[str, Quality] | None = None

    @property
    def kept(self) -> int:
        return sum(x.kept for x in self.classes)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: sum(x.sizes[name] for x in self.classes) for name in AREAS}

    def record(self) -> dict[str, Any]:
        """All numbers, for JSON."""

        def plain(x):
            if isinstance(x, dict):
                return {key: plain(value) for key, value in x.items()}
            return x.record() if isinstance(x, Quality) else x

        classes = [
            {key: plain(value) for key, value in vars(x).items()}
            | {"share_ratio": x.share_ratio, "alarm": x.alarm}
            for x in self.classes
        ]
        own = {key: plain(value) for key, value in vars(self).items()}
        return own | {"classes": classes, "sizes": self.sizes}


def statistics(
    run: RunFolder, labelled: LabelSet | None = None, truth: LabelSet | None = None
) -> Statistics:
    """Counts everything in one pass over the shards.

    Args:
        labelled: a data set whose mix of classes is compared with that of the pseudo boxes.
        truth: labels of images of the run, to say how good the pseudo boxes are.

    Raises:
        RunError, ShardError: the run is not complete.
        ConfigError: labels that have nothing to do with the run.
    """
    labels = LabelledRun(run)
    meter = None if truth is None else QualityMeter(truth, labels.categories)
    shares = None if labelled is None else labelled_shares(labelled, labels.categories)
    counts = _Counts(len(labels.categories))
    for part in labels.shards("statistics"):
        counts.add(part)
        if meter is not None:
            meter.add(part)
    result = counts.statistics(labels)
    if labelled is not None:
        _add_shares(result, labelled, shares)
    if meter is not None:
        result.quality, by_class, by_source = meter.result()
        result.quality_by_source = by_source if len(by_source) > 1 else None
        result.quality_images = {"used": meter.num_images, "dropped": meter.num_dropped}
        for x in result.classes:
            x.quality = by_class.get(x.name)
    return result


class _Counts:
    def __init__(self, num_classes: int):
        self._raw, self._kept, self._ignored = np.zeros((3, num_classes), np.int64)
        self._scores = np.zeros((num_classes, SCORE_BINS), np.int64)
        self._sizes = np.zeros((num_classes, len(AREAS)), np.int64)
        self._per_image = np.zeros(MOST_BOXES + 1, np.int64)
        self._status = np.zeros(len(STATUS_NAMES), np.int64)

    def add(self, part: LabelledShard) -> None:
        for total, found in (
            (self._raw, part.merged),
            (self._kept, part.kept),
            (self._ignored, part.ignored),
        ):
            total += np.bincount(found.category, minlength=len(total))
        bins = np.clip((part.merged.score * SCORE_BINS).astype(int), 0, SCORE_BINS - 1)
        self._scores += _table(part.merged.category, bins, self._scores.shape)
        sides = part.kept.box[:, 2:].astype(np.float64) - part.kept.box[:, :2]
        size = np.searchsorted(list(AREAS.values()), sides.prod(1), side="right")
        self._sizes += _table(part.kept.category, size, self._sizes.shape)
        boxes = part.per_image(part.kept)[part.used_images]
        self._per_image += np.bincount(np.minimum(boxes, MOST_BOXES), minlength=MOST_BOXES + 1)
        self._status += np.bincount(part.status, minlength=len(STATUS_NAMES))

    def statistics(self, labels: LabelledRun) -> Statistics:
        status, used = self._status.tolist(), int(self._status[USED])
        images = {"all": sum(status), "read": sum(status) - status[FAILED]}
        images |= {name: status[number] for number, name in STATUS_NAMES.items()}
        images["without_boxes"] = int(self._per_image[0])
        classes = [
            ClassStatistics(
                name,
                {t: labels.merge["thresholds"][t][name] for t in labels.merge["known_by"][name]},
                float(labels.filter["t_keep"][name]),
                float(labels.filter["t_ignore"][name]),
                int(self._raw[c]),
                int(self._kept[c]),
                int(self._ignored[c]),
                self._scores[c].tolist(),
                dict(zip(AREAS, self._sizes[c].tolist())),
            )
            for c, name in enumerate(labels.categories)
        ]
        return Statistics(
            images,
            self._per_image.tolist(),
            float(self._kept.sum() / used) if used else 0.0,
            classes,
            dict(labels.filter["counters"]),
            labels.merge["agreement"],
            speeds(labels.run),
        )


def _table(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How often each pair of numbers occurs."""
    pairs = row.astype(np.int64) * shape[1] + column
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def labelled_shares(labelled: LabelSet, categories: Sequence[str]) -> np.ndarray:
    """(C,) share of each class among labelled boxes; nan of those that the labels do not know.

    Raises:
        ConfigError: there is no labelled box of any class.
    """
    counts = labelled.counts(categories).astype(np.float64)
    if not counts.sum():
        raise ConfigError(
            f"{labelled.name} has no box of any of the run's classes: map the teachers' classes to "
            "its names, or compare with another data set."
        )
    about = np.isin(categories, list(labelled.classes))
    return np.where(about, counts / counts.sum(), np.nan)


def _add_shares(result: Statistics, labelled: LabelSet, shares: np.ndarray) -> None:
    result.labelled = labelled.name
    known = ~np.isnan(shares)
    total = sum(x.kept for x, about in zip(result.classes, known) if about)
    for x, share, about in zip(result.classes, shares.tolist(), known):
        if about:
            x.share, x.labelled_share = x.kept / total if total else 0.0, share
