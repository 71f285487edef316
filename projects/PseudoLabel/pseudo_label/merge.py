"""The stage merge: from what each teacher found to one set of boxes in unified classes.

It reads the raw shards, and writes ``merged/`` and ``merge.json``.

Symbols: T teachers, C unified classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_d2.config.rules import ConfigError
from kd_d2.registry import unknown_name

from .agreement import TeacherAgreement
from .calibration import calibrate
from .class_map import Unified, map_of, read_parents, unify
from .detections import Detections
from .merge_settings import MergeSettings
from .merging import keep_children, merge_nms, merge_vote, merge_wbf
from .prepare import PlannedRun
from .raw_detections import check_generated, raw_hashes, read_unified
from .run_folder import RunError, RunFolder, hash_of
from .run_thresholds import teacher_thresholds
from .setting_names import called
from .shards import Shard, ShardContents, read_shard, write_shard
from .stage_files import shards_to_do, stage_is_done, write_stage

COMMON_THRESHOLD = 0.5
"""The threshold of every class on the common scale of several teachers."""
_BOXES = ("categories", "known_by", "class_maps", "parents", "thresholds", "calibrated", "highest")
_OF_BOXES = ("mode", "iou", "score_type", "weights", "min_votes", "parent_iou")


@dataclass(frozen=True)
class MergePlan:
    """All that merged boxes depend on, but for the raw ones.

    Attributes:
        parents: child -> parent, numbers of unified classes.
        thresholds: (T, C) float32, nan where a teacher does not know a class.
        weights: (T, C) how much a teacher counts for a class, 0 where it does not know it.
    """

    settings: MergeSettings
    unified: Unified
    parents: dict[int, int]
    thresholds: np.ndarray
    weights: np.ndarray

    @property
    def calibrated(self) -> bool:
        """The scores of a single teacher stay as they are."""
        return len(self.thresholds) > 1

    @property
    def unites(self) -> bool:
        """Whether boxes of a class come from several teachers, or several classes of a teacher.

        Else the teacher's own NMS has seen all of them.
        """
        own = [lookup[lookup >= 0] for lookup in self.unified.lookup]
        return self.calibrated or any(len(np.unique(x)) < len(x) for x in own)

    @property
    def lowers(self) -> bool:
        """Whether what a teacher was sure of may end with a low score, or be gone."""
        return self.unites and self.settings.mode != "nms"


def merge_run(
    run: RunFolder, settings: MergeSettings, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Merges what the teachers of a run found. What is merged already in the same way stays.

    Args:
        progress: is called with the number of shards that are done, and of all.

    Returns:
        ``merge.json``.

    Raises:
        RunError: the stage generate is not done.
        ConfigError, ClassMapError: settings that do not fit the run.
        ShardError: raw shards are of another run, or were changed.
    """
    unified, parents = unify_classes(run, settings)
    check_generated(run)
    thresholds = teacher_thresholds(run, unified, settings)
    plan = _plan(settings, unified, parents, thresholds)
    made_of = raw_hashes(run)
    content = _record(run, plan, thresholds) | {"made_of": hash_of(made_of)}
    if stage_is_done(run, "merge", content, [run.merged], made_of):
        return run.folder / "merge.json"
    to_do = set(shards_to_do(run, "merge", content["hash"], run.merged, made_of))
    names = [t.name for t in run.teachers]
    agreement, num_raw, num_merged = TeacherAgreement(unified), np.zeros(len(names), np.int64), 0
    for done, shard in enumerate(run.shards, 1):
        parts, sizes, failed = _read(run, plan, shard)
        agreement.add([d[d.score >= plan.thresholds[d.teacher, d.category]] for d in parts])
        num_raw += [len(d) for d in parts]
        if shard in to_do:
            merged = merge_detections(plan, parts)
            highest = highest_scores(plan, parts, shard) if plan.lowers else None
            contents = ShardContents(merged, sizes, failed, highest=highest)
            write_shard(run.merged, shard, contents, content["hash"], made_of[shard.name])
        else:
            merged = read_shard(run.merged, shard).detections
        num_merged += len(merged)
        if progress is not None:
            progress(done, len(run.shards))
    content["detections"] = {
        "raw": dict(zip(names, num_raw.tolist())),
        "merged": num_merged,
    }
    content["agreement"] = agreement.shares(names)
    return write_stage(run, "merge", content)


def merge_detections(plan: MergePlan, parts: Sequence[Detections]) -> Detections:
    """Merges the detections of all teachers in the same images, which are of unified classes.

    Returns:
        by image, and then by falling score.
    """
    d, least = _on_common_scale(plan, parts), plan.thresholds[0]
    if plan.calibrated:
        least = np.full_like(least, COMMON_THRESHOLD)
    if plan.unites:
        d = _merge(plan, d)
    return keep_children(d, plan.parents, plan.settings.parent_iou, least).by_image()


def highest_scores(plan: MergePlan, parts: Sequence[Detections], shard: Shard) -> np.ndarray:
    """(k, C) float32, the highest score of any teacher for each class in each of the k images."""
    d = _on_common_scale(plan, parts)
    highest = np.zeros((len(shard), len(plan.unified.names)), np.float32)
    np.fmax.at(highest, (d.image - shard.first, d.category), d.score)
    return highest


def _on_common_scale(plan: MergePlan, parts: Sequence[Detections]) -> Detections:
    d = Detections.concatenate(parts)
    if plan.calibrated:
        d.score = calibrate(d.score, plan.thresholds[d.teacher, d.category])
    return d


def _merge(plan: MergePlan, d: Detections) -> Detections:
    settings, known, iou = plan.settings, plan.unified.known, plan.settings.least_iou
    if settings.mode == "nms":
        return merge_nms(d, iou)
    if settings.mode == "vote":
        return merge_vote(d, known, iou, settings.min_votes)
    return merge_wbf(d, known, iou, settings.score_type, plan.weights)


def _check_names(run: RunFolder | PlannedRun, settings: MergeSettings) -> None:
    names = [t.name for t in run.teachers]
    for kind, given in (("class map", settings.class_maps), ("weight", settings.weights)):
        for name in given:
            if name not in names:
                raise ConfigError(f"For a {kind}: {unknown_name('teacher', name, names)}")
    if settings.mode == "vote" and settings.min_votes > len(names):
        raise ConfigError(
            f"{called('min_votes')} is {settings.min_votes}, but the run has {len(names)} "
            f"teacher{'s' if len(names) > 1 else ''}: ask for that many at most."
        )


def unify_classes(
    run: RunFolder | PlannedRun, settings: MergeSettings
) -> tuple[Unified, dict[int, int]]:
    """The unified classes of a run, and child -> parent by their numbers; needs no detections.

    Raises:
        ConfigError, ClassMapError: settings that do not fit the run.
    """
    _check_names(run, settings)
    paths = [settings.class_maps.get(t.name) for t in run.teachers]
    unified = unify(
        [map_of(teacher.classes, path) for teacher, path in zip(run.teachers, paths)],
        settings.classes,
    )
    return unified, read_parents([x for x in paths if x is not None], unified.names)


def _plan(
    settings: MergeSettings,
    unified: Unified,
    parents: dict[int, int],
    thresholds: dict[str, dict[str, float]],
) -> MergePlan:
    table = [
        [of_teacher.get(c, np.nan) for c in unified.names] for of_teacher in thresholds.values()
    ]
    table = np.array(table, np.float32)
    weight = np.array([settings.weights.get(name, 1.0) for name in thresholds])
    weights = np.where(np.isnan(table), 0.0, weight[:, None])
    return MergePlan(settings, unified, parents, table, weights)


def _record(
    run: RunFolder, plan: MergePlan, thresholds: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """What ``merge.json`` says before the first shard is merged."""
    names, teachers = plan.unified.names, [t.name for t in run.teachers]
    lookup = [x.tolist() for x in plan.unified.lookup]
    content: dict[str, Any] = {
        "categories": list(names),
        "known_by": {
            name: [teachers[t] for t in by] for name, by in zip(names, plan.unified.known_by)
        },
        "class_maps": {
            t.name: {c: names[k] if k >= 0 else None for c, k in zip(t.classes, own)}
            for t, own in zip(run.teachers, lookup)
        },
        "parents": {names[child]: names[parent] for child, parent in plan.parents.items()},
        "thresholds": thresholds,
        "calibrated": plan.calibrated,
        "highest": plan.lowers,  # whether shards have the highest scores
    }
    content["settings"] = plan.settings.record()
    return content | {"hash": merge_hash(run, content)}


def merge_hash(run: RunFolder, content: Mapping[str, Any]) -> str:
    """Hash of how boxes are merged, and of whom; what the teachers have found has its own.

    Args:
        content: what ``merge.json`` says.

    Raises:
        KeyError, TypeError: it is no such content.
    """
    # settings by which the thresholds were found do not matter for the boxes
    made_by = {key: content[key] for key in _BOXES} | {
        "images": run.image_list,
        "raw": [[t.name, t.run, t.classes] for t in run.teachers],
        "settings": {key: content["settings"][key] for key in _OF_BOXES},
    }
    return hash_of(made_by)


def _read(
    run: RunFolder, plan: MergePlan, shard: Shard
) -> tuple[list[Detections], np.ndarray, dict[int, str]]:
    """Each teacher's detections in the images that all could read; sizes; images that failed."""
    contents = [read_unified(run, t, shard, plan.unified) for t in range(len(run.teachers))]
    failed: dict[int, str] = {}
    for part in reversed(contents):
        failed |= part.failed
    read = np.ones(len(shard), bool)
    read[[number - shard.first for number in failed]] = False
    sizes = contents[0].sizes * read[:, None]
    for teacher, part in zip(run.teachers, contents):
        if (part.sizes != sizes)[read].any():
            raise RunError(
                f"{run.teachers[0].name} and {teacher.name} saw images of the shard {shard.name} "
                "in different sizes: the files were changed in between; generate anew."
            )
    parts = [x.detections[read[x.detections.image - shard.first]] for x in contents]
    return parts, sizes, failed
