"""Whether what a run and its stages say of themselves is what they once said."""

from collections.abc import Mapping
from typing import Any

from .filter import filter_hash
from .merge import merge_hash
from .run_folder import RunFolder, is_sealed
from .teachers import teacher_hash


def run_fault(run: RunFolder) -> str | None:
    """What is wrong with ``run.json``, on which all else depends."""
    path = run.folder / "run.json"
    if not run.is_as_written:
        return f"{path} was changed after it was written: restore it from a copy."
    others = [t.name for t in run.teachers if teacher_hash(t.provenance) != t.run]
    if others:
        return (
            f"{path} says of {', '.join(others)} what is not so: detections there are of another "
            "config, of other weights or settings; restore it from a copy."
        )
    return None


def stage_fault(
    run: RunFolder, stage: str, content: Mapping[str, Any], known: bool = True
) -> str | None:
    """What is wrong with ``<stage>.json``.

    Args:
        content: of it.
        known: whether ``run.json`` is as it was, so that the merge can be compared with it.
    """
    path = run.folder / f"{stage}.json"
    if not is_sealed(content):
        return f"{path} was changed after it was written: run the stage {stage} again."
    try:
        if stage == "filter":
            same = filter_hash(content) == content["hash"]
        else:
            content["made_of"]  # is not in that of earlier versions
            same = not known or merge_hash(run, content) == content["hash"]
    except (KeyError, TypeError):
        return f"{path} does not say how its boxes were made: run the stage {stage} again."
    if same:
        return None
    return (
        f"{path} says of classes, thresholds or settings, or of teachers and images, what is not "
        f"so: run the stage {stage} again."
    )
