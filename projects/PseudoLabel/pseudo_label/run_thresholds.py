"""The thresholds of a run's teachers, by passes over what they have found.

Symbols: T teachers, C unified classes.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kd_d2.config.rules import ConfigError

from .class_map import Unified
from .detections import Detections
from .label_set import Labels, LabelSet, find_record, judge
from .merge_settings import NEEDS_LABELS, MergeSettings
from .raw_detections import read_unified
from .run_folder import ImageRecord, RunFolder
from .score_ranks import ScoreRanks
from .thresholds import (
    LEAST_LABELS,
    count_ranks,
    count_thresholds,
    fbeta_thresholds,
    read_thresholds,
    warn_of_high,
)

Thresholds = dict[str, dict[str, float]]
"""Teacher -> unified class that it knows -> threshold."""


def teacher_thresholds(run: RunFolder, unified: Unified, settings: MergeSettings) -> Thresholds:
    """
    Raises:
        ConfigError: the file, or the labels, do not fit the run.
    """
    mode, teachers = settings.threshold_mode, [t.name for t in run.teachers]
    if mode == "per_class_count":
        found = _of_known(teachers, unified, _by_count(run, unified, settings))
    elif mode == "per_class_fbeta":
        found = _of_known(teachers, unified, _by_fbeta(run, unified, settings))
    else:
        found = highest_thresholds(teachers, unified, settings)
    warn_of_high(found)
    return found


def highest_thresholds(
    teachers: Sequence[str], unified: Unified, settings: MergeSettings
) -> Thresholds:
    """Those that are given, or if they are to be found, what they can be at most.

    Raises:
        ConfigError: the file does not fit.
    """
    if settings.threshold_mode == "file":
        return read_thresholds(settings.threshold_file, _known(teachers, unified))
    highest = settings.threshold
    if settings.threshold_mode in NEEDS_LABELS:
        highest = max(highest, settings.limits[1])
    table = np.full((len(teachers), len(unified.names)), highest)
    return _of_known(teachers, unified, table)


def check_threshold_labels(
    unified: Unified, settings: MergeSettings, images: Iterable[ImageRecord]
) -> None:
    """Whether thresholds can be found by the labels, as far as that is known without detections.

    Args:
        images: of the run.

    Raises:
        ConfigError: they cannot.
    """
    labels = settings.labels
    if settings.threshold_mode == "per_class_count":
        _mean_labels(labels, unified)
    elif settings.threshold_mode == "per_class_fbeta":
        labelled = labels.by_file()
        records = [x for image in images if (x := find_record(labelled, image)) is not None]
        boxes = labels.boxes(enumerate(records), unified.names)
        _check_number(labels, bool(records), _num_single(boxes, unified))


def _known(teachers: Sequence[str], unified: Unified) -> dict[str, list[str]]:
    """Teacher -> unified classes that it knows."""
    return {
        name: [c for c, by in zip(unified.names, unified.known_by) if number in by]
        for number, name in enumerate(teachers)
    }


def _of_known(teachers: Sequence[str], unified: Unified, table: np.ndarray) -> Thresholds:
    """A table (T, C) without the classes that teachers do not know."""
    rows = {name: dict(zip(unified.names, row.tolist())) for name, row in zip(teachers, table)}
    return {
        name: {c: rows[name][c] for c in own} for name, own in _known(teachers, unified).items()
    }


def _mean_labels(labels: LabelSet, unified: Unified) -> tuple[np.ndarray, np.ndarray]:
    """(C,) labelled boxes in an image, and which classes the labels are about."""
    about, counts = np.isin(unified.names, labels.classes), labels.counts(unified.names)
    if not about.any():
        raise ConfigError(
            f"None of the classes of {labels.name} is one of the run's: map the teachers' classes "
            "to its names."
        )
    if not counts.any():
        raise ConfigError(
            f"{labels.name} has no box of any of the run's classes: take another data set, or "
            "another threshold_mode."
        )
    return counts / len(labels.dicts), about


def _check_number(labels: LabelSet, has_images: bool, num_labels: np.ndarray) -> None:
    """Whether the labelled boxes (C,) in the run's images are enough."""
    if not has_images:
        raise ConfigError(
            f"None of the images of {labels.name} is in the run: generate labels for some "
            "of them, too, or choose another threshold_mode."
        )
    if (num_labels < LEAST_LABELS).all():
        raise ConfigError(
            f"No class has {LEAST_LABELS} boxes of {labels.name} in the run's images: "
            "generate labels for more of them, or choose another threshold_mode."
        )


def _num_single(labels: Labels, unified: Unified) -> np.ndarray:
    """(C,) labelled boxes without crowds."""
    return np.bincount(labels.category[~labels.crowd], minlength=len(unified.names))


def _by_count(run: RunFolder, unified: Unified, settings: MergeSettings) -> np.ndarray:
    """(T, C): each class as often in an image as people have labelled it."""
    mean, about = _mean_labels(settings.labels, unified)
    table = []
    for teacher in range(len(run.teachers)):
        ranks, num_images = ScoreRanks(len(unified.names)), 0
        for shard in run.shards:
            contents = read_unified(run, teacher, shard, unified)
            ranks.add(contents.detections.category, contents.detections.score)
            num_images += len(shard) - len(contents.failed)
        ranks.choose(count_ranks(num_images, mean))
        for shard in run.shards:
            found = read_unified(run, teacher, shard, unified).detections
            ranks.refine(found.category, found.score)
        table.append(count_thresholds(ranks.scores(), about, settings.threshold, settings.limits))
    return np.array(table)


def _by_fbeta(run: RunFolder, unified: Unified, settings: MergeSettings) -> np.ndarray:
    """(T, C): where F-beta is highest in the labelled images.

    Held in memory: score, class and verdict of the detections in labelled images.
    """
    num_teachers, num_classes = len(run.teachers), len(unified.names)
    judged: list[list[tuple]] = [[] for _ in range(num_teachers)]
    num_labels = np.zeros((num_teachers, num_classes), np.int64)
    for parts, counts in _judged_shards(run, unified, settings.labels):
        for teacher, (d, hit) in enumerate(parts):
            judged[teacher].append((d.category, d.score, hit))
        num_labels += counts
    _check_number(settings.labels, bool(judged[0]), num_labels)
    return np.array(
        [
            fbeta_thresholds(
                *(np.concatenate(x) for x in zip(*judged[teacher])),
                num_labels[teacher],
                settings.threshold,
                settings.beta,
                settings.limits,
            )
            for teacher in range(num_teachers)
        ]
    )


def _judged_shards(
    run: RunFolder, unified: Unified, label_set: LabelSet
) -> Iterator[tuple[list[tuple[Detections, np.ndarray]], np.ndarray]]:
    """For each shard with labelled images: each teacher's verdicts, and labelled boxes (T, C)."""
    labelled = label_set.by_file()
    for shard in run.shards:
        records = enumerate((find_record(labelled, x) for x in run.images(shard)), shard.first)
        records = {number: record for number, record in records if record is not None}
        if not records:
            continue
        parts, counts = [], []
        for teacher in range(len(run.teachers)):
            contents = read_unified(run, teacher, shard, unified)
            seen = {k: record for k, record in records.items() if k not in contents.failed}
            labels, d = label_set.boxes(seen.items(), unified.names), contents.detections
            parts.append(judge(d[np.isin(d.image, list(seen))], labels))
            counts.append(_num_single(labels, unified))
        yield parts, np.array(counts)
