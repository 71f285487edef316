"""The thresholds of a run's teachers, by passes over what they have found.

Symbols: T teachers, C unified classes.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from kd_d2.config.rules import ConfigError

from .class_map import Unified
from .detections import Detections
from .label_set import LabelSet, find_record, judge
from .merge_settings import MergeSettings
from .raw_detections import read_unified
from .run_folder import RunFolder
from .score_ranks import ScoreRanks
from .setting_names import called
from .thresholds import (
    LEAST_LABELS,
    count_ranks,
    count_thresholds,
    fbeta_thresholds,
    read_thresholds,
    warn_of_high,
)


def teacher_thresholds(
    run: RunFolder, unified: Unified, settings: MergeSettings
) -> dict[str, dict[str, float]]:
    """Teacher -> unified class that it knows -> threshold.

    Raises:
        ConfigError: the file, or the labels, do not fit the run.
    """
    teachers, mode = [t.name for t in run.teachers], settings.threshold_mode
    known = unified.known_to(teachers)
    if mode == "file":
        found = read_thresholds(settings.threshold_file, known)
    else:
        if mode == "global":
            table = np.full((len(teachers), len(unified.names)), settings.threshold)
        elif mode == "per_class_count":
            table = _by_count(run, unified, settings)
        else:
            table = _by_fbeta(run, unified, settings)
        values = [dict(zip(unified.names, row.tolist())) for row in table]
        found = {name: {c: row[c] for c in known[name]} for name, row in zip(teachers, values)}
    warn_of_high(found)
    return found


def labelled_classes(labels: LabelSet, names: Sequence[str]) -> np.ndarray:
    """(C,) bool, which of the unified classes the labels are about.

    Raises:
        ConfigError: none of them, or there is no box of any.
    """
    about = np.isin(names, labels.classes)
    if not about.any():
        raise ConfigError(
            f"None of the classes of {labels.name} is one of the run's: map the teachers' classes "
            "to its names."
        )
    if not labels.counts(names).any():
        raise ConfigError(
            f"{labels.name} has no box of the run's classes, so that nothing can be counted: name "
            "a data set that is labelled."
        )
    return about


def check_labelled_images(name: str, num_images: int, num_labels: np.ndarray) -> None:
    """
    Args:
        name: of the labels.
        num_images: labelled images in the run.
        num_labels: (C,) or (T, C) boxes in them.

    Raises:
        ConfigError: that is not enough to find thresholds by.
    """
    if not num_images:
        raise ConfigError(
            f"None of the images of {name} is in the run: generate labels for some of them, too, "
            f"or choose other thresholds ({called('threshold_mode')})."
        )
    if (num_labels < LEAST_LABELS).all():
        raise ConfigError(
            f"No class has {LEAST_LABELS} boxes of {name} in the run's images: generate labels for "
            f"more of them, or choose other thresholds ({called('threshold_mode')})."
        )


def _by_count(run: RunFolder, unified: Unified, settings: MergeSettings) -> np.ndarray:
    """(T, C): each class as often in an image as people have labelled it."""
    labels = settings.labels
    mean = labels.counts(unified.names) / len(labels.dicts)
    about = labelled_classes(labels, unified.names)
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
    check_labelled_images(settings.labels.name, len(judged[0]), num_labels)
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
            single = labels.category[~labels.crowd]
            counts.append(np.bincount(single, minlength=len(unified.names)))
        yield parts, np.array(counts)
