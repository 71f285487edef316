"""Whether a run, and what was exported of it, still are what they were when they were made."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kd_d2.checkpoint import file_sha256

from .coco_files import read_info
from .export import FOLDER as EXPORT
from .labelled_run import read_stage
from .publish import NEW, SIDE_CAR, read_side_car, tree_sha256
from .run_folder import RunError, RunFolder, image_list_hash
from .shards import FAILED, Shard, ShardError, is_done, read_shard


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
        return list(_export_faults(folder))
    raise RunError(
        f"{folder} holds neither a run (run.json) nor exported labels ({SIDE_CAR}): check the path."
    )


def _run_faults(run: RunFolder) -> Iterator[str]:
    yield from _image_faults(run)
    yield from _weights_faults(run)
    for teacher in run.teachers:
        yield from _shard_faults(run, run.raw(teacher), teacher.run)
    yield from _stage_faults(run)
    export = run.folder / EXPORT
    if export.exists():
        yield from _export_faults(export)
        yield from _other_run_faults(run, export)


def _stage_faults(run: RunFolder) -> Iterator[str]:
    found = {}
    for stage, folders in (("merge", [run.merged]), ("filter", [run.filtered, run.ignored])):
        if not (run.folder / f"{stage}.json").exists():
            continue
        try:
            found[stage] = read_stage(run, stage)
        except RunError as error:
            yield str(error)
            continue
        for folder in folders:
            yield from _shard_faults(run, folder, found[stage]["hash"])
    if len(found) == 2 and found["filter"].get("merge") != found["merge"]["hash"]:
        yield f"{run.folder / 'filter.json'} is of an earlier merge: run the stage filter again."


def _image_faults(run: RunFolder) -> Iterator[str]:
    path = run.folder / "images.jsonl"
    try:
        same = image_list_hash(run.images()) == run.image_list
    except (OSError, TypeError, ValueError) as error:
        yield f"{path} cannot be read ({error}): restore it from a copy."
        return
    if not same:
        yield (
            f"{path} is not the list that this run was begun with, so that its boxes may be of "
            "other images: restore it from a copy."
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


def _shard_faults(run: RunFolder, folder: Path, made_by: str) -> Iterator[str]:
    """One sentence for each kind of fault in a folder of shards."""
    faults = defaultdict(list)
    for shard in run.shards:
        fault = _shard_fault(folder, shard, made_by)
        if fault:
            faults[fault].append(shard.name)
    for fault, names in faults.items():
        which = names[0] + ", ..." * (len(names) > 1)
        yield f"{len(names)} of {len(run.shards)} shards in {folder} ({which}): {fault}."


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


def _export_faults(folder: Path) -> Iterator[str]:
    content = read_side_car(folder)
    if (folder / NEW).exists():
        yield f"{folder} is of an export that was cut off: export again."
    if content is None:
        yield f"{folder / SIDE_CAR} is missing or cannot be read: export again."
        return
    if content.get("contains_human_labels") is not False:
        yield f"{folder / SIDE_CAR} does not say that there are no human labels in these files."
    for name, expected in sorted(content["files"].items()):
        path = folder / name
        if not path.exists():
            yield f"{path} is missing: export again."
        elif tree_sha256(path) != expected:
            yield (
                f"{path} was changed after it was exported: if these are labels by hand, move them "
                "to another folder, and then export again."
            )
        elif name.startswith(("pseudo", "ignore", "dropped")):
            yield from _info_faults(path)


def _info_faults(path: Path) -> Iterator[str]:
    try:
        human = read_info(path)["pseudo"]["contains_human_labels"]
    except (KeyError, TypeError, ValueError):
        human = None
    if human is not False:
        yield f"{path} does not say that there are no human labels in it: export again."


def _other_run_faults(run: RunFolder, folder: Path) -> Iterator[str]:
    """Whether an export is of what the run now holds."""
    content = read_side_car(folder) or {}
    if not content:
        return
    if content.get("images", {}).get("list") != run.image_list:
        yield f"{folder} is of another list of images: export again."
    try:
        now = read_stage(run, "filter")["hash"]
    except RunError:
        now = None
    if content.get("filter", {}).get("hash") != now:
        yield f"{folder} is of an earlier filter, with other thresholds or boxes: export again."
