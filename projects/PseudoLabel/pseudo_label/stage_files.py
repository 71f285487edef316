"""What the stages merge and filter have written so far, and whether it can stay."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_d2.checkpoint import atomic_write

from .labelled_run import read_stage
from .run_folder import RunError, RunFolder, is_sealed, sealed
from .shards import Shard, ShardError, undone


def stage_is_done(
    run: RunFolder,
    stage: str,
    expected: Mapping[str, Any],
    folders: Sequence[Path],
    made_of: Mapping[str, str] | None = None,
) -> bool:
    """Whether ``<stage>.json`` is as written, of the expected values, and all its shards are there.

    Args:
        made_of: name of a shard -> what it must be made of.
    """
    try:
        content = read_stage(run, stage)
        same = all(content.get(key) == value for key, value in expected.items())
        if not same or not is_sealed(content):
            return False
        return not any(undone(f, run.shards, content["hash"], made_of) for f in folders)
    except (RunError, ShardError):
        return False


def shards_to_do(
    run: RunFolder,
    stage: str,
    made_by: str,
    folder: Path,
    made_of: Mapping[str, str] | None = None,
) -> list[Shard]:
    """Begins a stage: the shards that are missing in a folder; it no longer says that it is done.

    If one has another hash, the folder is emptied: its shards are quickly made, and must not be
    mixed.
    """
    (run.folder / f"{stage}.json").unlink(missing_ok=True)
    try:
        return undone(folder, run.shards, made_by, made_of)
    except ShardError:
        shutil.rmtree(folder)
        return run.shards


def write_stage(run: RunFolder, stage: str, content: Mapping[str, Any]) -> Path:
    """Writes ``<stage>.json``, which says that the stage is done."""
    path = run.folder / f"{stage}.json"
    with atomic_write(str(path), "w") as f:
        json.dump(sealed(content), f, indent=1)
    return path
