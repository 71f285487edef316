"""Whether a run, and what was exported of it, still are what they were when they were made."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kd_d2.checkpoint import file_sha256

from .export import FOLDER as EXPORT
from .labelled_run import is_of_earlier_merge, read_stage
from .publish import SIDE_CAR
from .raw_detections import raw_hashes
from .run_folder import RunError, RunFolder, hash_of, image_list_hash
from .shards import FAILED, Shard, ShardError, is_done, read_shard
from .verify_export import export_faults, other_run_faults
from .verify_records import run_fault, stage_fault


def verify(run_or_export: RunFolder | Path | str) -> list[str]:
    """What is wrong, a sentence each; none: all is right.

    All shards are read. Stages that were not run are no fault, and neither are weights that are not
    where they were.

    Args:
        run_or_export: a run, with its export if there is one, or an exported folder alone.

    Raises:
        RunError: there is neither.
    """
    if isinstance(run_or_export, RunFolder):
        return list(_run_faults(run_or_export))
    folder = Path(run_or_export)
    if (folder / "run.json").exists():
        return list(_run_faults(RunFolder(folder)))
    if (folder / SIDE_CAR).exists():
        return export_faults(folder)
    raise RunError(
        f"{folder} holds neither a run (run.json) nor exported labels ({SIDE_CAR}): check the path."
    )


def _run_faults(run: RunFolder) -> Iterator[str]:
    fault = _list_fault(run)
    if fault:
        yield fault
        return  # shards are called by their images
    if not run.has_images_as_written:
        yield (
            f"{run.folder / 'images.jsonl'} was changed after it was written, though its names and "
            "ids are right: restore it from a copy."
        )
    unlike_run = run_fault(run)
    if unlike_run:
        yield unlike_run
    else:
        yield from _weights_faults(run)
    raw = [x for t in run.teachers for x in _shard_faults(run, run.raw(t), t.run)]
    yield from raw
    records, shards = _stage_faults(run, known=not unlike_run, made_of_raw=not raw)
    yield from records
    yield from shards
    export = run.folder / EXPORT
    if export.exists():
        faults = export_faults(export)
        yield from faults
        if not (unlike_run or records or faults):
            yield from other_run_faults(run, export)


def _stage_faults(run: RunFolder, known: bool, made_of_raw: bool) -> tuple[list[str], list[str]]:
    """Faults of the records of the stages, and of their shards.

    Args:
        known: whether ``run.json`` can be relied on.
        made_of_raw: whether the raw shards can.
    """
    records: list[str] = []
    shards: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    for stage, folders in (("merge", [run.merged]), ("filter", [run.filtered, run.ignored])):
        if not (run.folder / f"{stage}.json").exists():
            continue
        try:
            content = read_stage(run, stage)
        except RunError as error:
            records.append(str(error))
            continue
        fault = stage_fault(run, stage, content, known)
        if fault:
            records.append(fault)
        else:
            found[stage] = content
        for folder in folders:
            shards += _shard_faults(run, folder, content["hash"])
    merge = found.get("merge")
    if merge and made_of_raw and merge.get("made_of") != hash_of(raw_hashes(run)):
        records.append(
            f"{run.folder / 'merge.json'} is of raw detections that were made anew since: run the "
            "stage merge and all later ones again."
        )
    if len(found) == 2 and is_of_earlier_merge(**found):
        records.append(
            f"{run.folder / 'filter.json'} is of an earlier merge: run the stage filter again."
        )
    return records, shards


def _list_fault(run: RunFolder) -> str | None:
    path = run.folder / "images.jsonl"
    try:
        same = image_list_hash(run.images()) == run.image_list
    except (OSError, TypeError, ValueError) as error:
        return f"{path} cannot be read ({error}): restore it from a copy."
    if same:
        return None
    return (
        f"{path} is not the list that this run was begun with, so that its boxes may be of other "
        "images: restore it from a copy."
    )


def _weights_faults(run: RunFolder) -> Iterator[str]:
    for teacher in run.teachers:
        path = teacher.provenance.get("weights")
        expected = teacher.provenance.get("weights_sha256")
        if not path or not expected or not os.path.isfile(path):
            continue
        if file_sha256(path) != expected:
            yield (
                f"{path} no longer holds the weights that the teacher {teacher.name} had in this "
                "run: what is generated from now on would be another's."
            )


def _shard_faults(run: RunFolder, folder: Path, made_by: str) -> list[str]:
    """One sentence for each kind of fault in a folder of shards."""
    faults = defaultdict(list)
    for shard in run.shards:
        fault = _shard_fault(folder, shard, made_by)
        if fault:
            faults[fault].append(shard.name)
    return [
        f"{len(names)} of {len(run.shards)} shards in {folder} "
        f"({names[0]}{', ...' * (len(names) > 1)}): {fault}."
        for fault, names in faults.items()
    ]


def _shard_fault(folder: Path, shard: Shard, made_by: str) -> str | None:
    try:
        if not is_done(folder, shard, made_by):
            return "missing or not complete; run the stage again"
    except ShardError:
        return "of another run, or of other settings; run the stage again"
    try:
        contents = read_shard(folder, shard)
    except ShardError:
        return "changed after being written; delete them, and run the stage again"
    number = contents.detections.image - shard.first
    status = contents.image_status(shard.first)
    if len(contents.sizes) != len(shard) or len(status) != len(shard):
        return "of another number of images than the list says; run the stage again"
    if ((number < 0) | (number >= len(shard))).any():
        return "with boxes of images that are not theirs; run the stage again"
    if np.any(status[number] == FAILED):
        return "with boxes of images that could not be read; run the stage again"
    return None
