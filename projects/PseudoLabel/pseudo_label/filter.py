"""The stage filter: which merged boxes become pseudo boxes and ignore boxes.

It reads ``merged/`` and ``merge.json``, and writes ``filtered/``, ``ignored/`` and ``filter.json``.

Symbols: C unified classes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kd_d2.config.rules import ConfigError

from .filters import Filtered, FilterSettings, default_t_ignore, filter_detections, image_status
from .labelled_run import read_stage
from .merge import COMMON_THRESHOLD
from .run_folder import RunError, RunFolder, hash_of
from .setting_names import called
from .shards import (
    AMBIGUOUS,
    EMPTY,
    FAILED,
    UNCERTAIN,
    USED,
    Shard,
    ShardContents,
    read_shard,
    undone,
    write_shard,
)
from .stage_files import shards_to_do, stage_is_done, write_stage

STATUS_NAMES = {
    USED: "used",
    FAILED: "failed",
    UNCERTAIN: "uncertain",
    AMBIGUOUS: "ambiguous",
    EMPTY: "empty",
}


def filter_run(run: RunFolder, settings: FilterSettings) -> Path:
    """Filters what the stage merge has made; if that is done already in the same way, it stays.

    Returns:
        ``filter.json``; its counts of kept and ignored boxes are those of images that are used.

    Raises:
        RunError: the stage merge is not done.
        ConfigError: settings that do not fit the run.
        ShardError: merged shards are of another run, or were changed.
    """
    merge = read_stage(run, "merge")
    missing = undone(run.merged, run.shards, merge["hash"])
    if missing:
        raise RunError(
            f"{len(missing)} of {len(run.shards)} shards in {run.merged} are not complete: run the "
            "stage merge again."
        )
    categories = merge["categories"]
    t_keep, t_ignore = _thresholds(merge, settings)
    content: dict[str, Any] = {
        "categories": categories,
        "t_keep": dict(zip(categories, t_keep.tolist())),
        "t_ignore": dict(zip(categories, t_ignore.tolist())),
        "settings": asdict(settings),
    }
    content["merge"] = merge["hash"]
    content["hash"] = hash_of(content)
    folders = [run.filtered, run.ignored]
    if stage_is_done(run, "filter", content, folders):
        return run.folder / "filter.json"
    for folder in folders:
        shards_to_do(run, "filter", content["hash"], folder)
    totals = _Totals(len(categories))
    for shard in run.shards:
        merged = read_shard(run.merged, shard)
        found, status = filter_shard(shard, merged, t_keep, t_ignore, settings)
        for folder, d in zip(folders, (found.pseudo, found.ignore)):
            contents = ShardContents(d, merged.sizes, merged.failed, status)
            write_shard(folder, shard, contents, content["hash"])
        totals.add(shard, found, status)
    return write_stage(run, "filter", content | totals.record(categories))


def _thresholds(
    merge: Mapping[str, Any], settings: FilterSettings
) -> tuple[np.ndarray, np.ndarray]:
    """(C,) ``t_keep`` and ``t_ignore``."""
    categories = merge["categories"]
    if merge["calibrated"]:
        t_keep = np.full(len(categories), COMMON_THRESHOLD)
    else:
        (of_teacher,) = merge["thresholds"].values()
        t_keep = np.array([of_teacher[name] for name in categories])
    if settings.t_ignore is None:
        return t_keep, default_t_ignore(t_keep)
    if settings.t_ignore > t_keep.min():
        name = categories[t_keep.argmin()]
        raise ConfigError(
            f"{called('t_ignore')} is {settings.t_ignore}, above the threshold {t_keep.min():.4g} "
            f"of {name!r}: give a lower one, or none."
        )
    return t_keep, np.full(len(categories), settings.t_ignore)


def filter_shard(
    shard: Shard,
    merged: ShardContents,
    t_keep: np.ndarray,
    t_ignore: np.ndarray,
    settings: FilterSettings,
) -> tuple[Filtered, np.ndarray]:
    """
    Args:
        t_keep, t_ignore: (C,).

    Returns:
        the boxes, and the status of each image.

    Raises:
        ConfigError: agreement is asked for, but was not looked at.
    """
    d = merged.detections
    if settings.min_agreement is not None and np.isnan(d.agreement).any():
        raise ConfigError(
            f"{called('min_agreement')} needs to know what the teacher finds in the mirrored "
            "images: generate with that, or leave it out."
        )
    place = d.image - shard.first
    sizes, low = merged.sizes[place], t_ignore[d.category]
    found = filter_detections(d, t_keep[d.category], low, sizes, settings)
    hopeful = place[d.score >= low.astype(np.float32)]
    per_image = [
        np.bincount(x, minlength=len(shard))
        for x in (found.pseudo.image - shard.first, found.ignore.image - shard.first, hopeful)
    ]
    failed = np.isin(np.arange(shard.first, shard.last), list(merged.failed))
    status = image_status(per_image[0], per_image[1], per_image[2] > 0, failed, settings)
    return found, status


class _Totals:
    """Counts of all shards."""

    def __init__(self, num_classes: int):
        self._counters: Counter[str] = Counter()
        self._images = np.zeros(len(STATUS_NAMES), np.int64)
        self._kept, self._ignored = np.zeros((2, num_classes), np.int64)

    def add(self, shard: Shard, found: Filtered, status: np.ndarray) -> None:
        self._counters.update(found.counters)
        self._images += np.bincount(status, minlength=len(STATUS_NAMES))
        for total, d in ((self._kept, found.pseudo), (self._ignored, found.ignore)):
            used = status[d.image - shard.first] == USED
            total += np.bincount(d.category[used], minlength=len(total))
            self._counters["of_dropped_images"] += int((~used).sum())

    def record(self, categories: list[str]) -> dict[str, Any]:
        return {
            "counters": dict(self._counters),
            "images": {name: int(self._images[k]) for k, name in STATUS_NAMES.items()},
            "kept": dict(zip(categories, self._kept.tolist())),
            "ignored": dict(zip(categories, self._ignored.tolist())),
        }
