"""A run whose stages merge and filter are done, shard by shard.

Symbols: C unified categories, k images of a shard.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from .detections import Detections
from .run_folder import ImageRecord, RunError, RunFolder
from .shards import FAILED, USED, Shard, read_shard, undone

STAGES = ("merge", "filter")


@dataclass
class LabelledShard:
    """What is known of the images of a shard.

    Attributes:
        status: (k,) what becomes of each image, the constants of ``shards``.
        sizes: (k, 2) height and width of each.
        kept: pseudo boxes of the images that are used, by image and then by falling score.
        ignored: their ignore boxes.
        dropped: both kinds of boxes of the images that are dropped.
    """

    run: RunFolder
    shard: Shard
    status: np.ndarray
    sizes: np.ndarray
    kept: Detections
    ignored: Detections
    dropped: Detections

    @cached_property
    def records(self) -> list[ImageRecord]:
        return list(self.run.images(self.shard))

    @cached_property
    def used_images(self) -> np.ndarray:
        """Positions in the shard of the images that are used."""
        return np.flatnonzero(self.status == USED)

    @cached_property
    def dropped_images(self) -> np.ndarray:
        """Positions in the shard of the images that were read, but are not used."""
        return np.flatnonzero((self.status != USED) & (self.status != FAILED))

    def ids_of(self, found: Detections) -> np.ndarray:
        """(n,) the id of the image of each detection."""
        ids = np.array([x.id for x in self.records], np.int64)
        return ids[found.image - self.shard.first]

    @cached_property
    def merged(self) -> Detections:
        """All detections of the images that were read, whatever became of them, but for those with
        numbers that are none."""
        merged = read_shard(self.run.merged, self.shard).detections
        finite = np.isfinite(merged.box).all(1) & np.isfinite(merged.score)
        return merged[finite & (self.status[merged.image - self.shard.first] != FAILED)]

    def per_image(self, found: Detections) -> np.ndarray:
        """(k,) how many of these detections each image has."""
        return np.bincount(found.image - self.shard.first, minlength=len(self.shard))

    def used(self) -> Iterator[tuple[ImageRecord, np.ndarray, Detections]]:
        """Each image that is used: its record, height and width, and pseudo boxes."""
        bounds = np.searchsorted(self.kept.image, np.arange(self.shard.first, self.shard.last + 1))
        for i in self.used_images:
            yield self.records[i], self.sizes[i], self.kept[bounds[i] : bounds[i + 1]]


class LabelledRun:
    """
    Attributes:
        merge, filter: what ``merge.json`` and ``filter.json`` say.
        categories: names of the C unified categories.
        t_keep, t_ignore: (C,) float32; a score of at least this makes a pseudo box, an ignore box.
        num_used: images whose labels are used.
        num_dropped: images that were read, but are not used.
        known: (C,) how many teachers know each category.

    Raises:
        RunError: a stage is missing or not complete, or the boxes were merged anew since.
        ShardError: shards are of another run.
    """

    def __init__(self, run: RunFolder):
        self.run = run
        self.merge, self.filter = (read_stage(run, stage) for stage in STAGES)
        try:
            self.categories: list[str] = self.merge["categories"]
            self.known = np.array([len(self.merge["known_by"][c]) for c in self.categories])
            self.t_keep, self.t_ignore = (
                np.array([self.filter[key][c] for c in self.categories], np.float32)
                for key in ("t_keep", "t_ignore")
            )
            images = self.filter["images"]
            self.num_used: int = images["used"]
            self.num_dropped = sum(images.values()) - images["used"] - images["failed"]
            hashes = (self.merge["hash"], self.filter["hash"], self.filter["hash"])
        except KeyError as error:
            raise RunError(
                f"merge.json and filter.json of {run.folder} do not fit together ({error} is "
                "missing): run merge and then filter again."
            ) from None
        if is_of_earlier_merge(self.merge, self.filter):
            raise RunError(
                f"{run.folder / 'filter.json'} is of an earlier merge, with other boxes or "
                "thresholds: run the stage filter again."
            )
        for folder, made_by in zip((run.merged, run.filtered, run.ignored), hashes, strict=True):
            missing = undone(folder, run.shards, made_by)
            if missing:
                raise RunError(
                    f"{len(missing)} of {len(run.shards)} shards in {folder} are missing or not "
                    "complete: run merge and then filter again."
                )

    def read(self, shard: Shard) -> LabelledShard:
        """
        Raises:
            ShardError: it was changed after it was written.
        """
        filtered, ignored = (read_shard(x, shard) for x in (self.run.filtered, self.run.ignored))
        status = filtered.image_status(shard.first)
        parts = [x.detections for x in (filtered, ignored)]
        used = [status[x.image - shard.first] == USED for x in parts]
        kept, ignored = (x[y].by_image() for x, y in zip(parts, used, strict=True))
        dropped = Detections.concatenate(x[~y] for x, y in zip(parts, used, strict=True)).by_image()
        return LabelledShard(self.run, shard, status, filtered.sizes, kept, ignored, dropped)

    def shards(self, task: str) -> Iterator[LabelledShard]:
        """All, in the order of the run; ``task`` is what the progress bar of a terminal says."""
        for shard in tqdm(self.run.shards, desc=task, unit="shard", disable=None, leave=False):
            yield self.read(shard)


def is_of_earlier_merge(merge: Mapping[str, Any], filter: Mapping[str, Any]) -> bool:
    """Whether boxes were merged in another way, or of other detections, since they were filtered.

    Args:
        merge, filter: what ``merge.json`` and ``filter.json`` say.
    """
    of_merge = filter.get("merge"), filter.get("made_of")
    return of_merge != (merge["hash"], merge.get("made_of"))


def read_stage(run: RunFolder, stage: str) -> dict[str, Any]:
    """What a stage says of itself in ``<stage>.json``.

    Raises:
        RunError: it was not run, or the file cannot be read.
    """
    path = run.folder / f"{stage}.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"There is no {path}: run the stage {stage} first.") from None
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): run the stage {stage} again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("hash"), str):
        raise RunError(f"{path} does not say which run it is of: run the stage {stage} again.")
    return content
