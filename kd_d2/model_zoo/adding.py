"""A file that the user has is put into the cache."""

import pickle
import shutil
from pathlib import Path

from .cache import remove_note, turn
from .download import DEFAULT_PATIENCE, publish
from .table import ZooError
from .verify import Digest, looks_wrong, mismatch

__all__ = ["put"]


def put(path: Path, file: str | Path, expected: Digest | None, origin: str) -> Path:
    """Copies a user's file to ``path`` in the cache, over one that is there.

    It is taken for the file at the address ``origin`` from then on.

    Raises:
        ZooError: the file does not exist, is not the one ``expected`` (no checkpoint, where nothing
            is expected), or cannot be copied.
    """
    if not Path(file).is_file():
        raise ZooError(f"There is no file '{file}' to add.")
    with open(file, "rb") as f:
        what = looks_wrong(f.read(512))
    if what:
        raise ZooError(f"'{file}' is {what}, and no weights, so that it was not added.")
    if wrong := mismatch(Path(file), expected):
        raise ZooError(
            f"'{file}' is not the file {expected}: {wrong}; it was left as it is, and not added."
        )
    if expected is None and str(file).endswith((".pth", ".pkl")):
        _require_readable(str(file))
    try:
        with turn(path, DEFAULT_PATIENCE.stale_after) as part:
            remove_note(part, "of")
            shutil.copyfile(file, part)
            publish(part, path, expected, f"'{file}'", origin)
    except OSError as error:
        raise ZooError(
            f"'{file}' could not be copied to '{path}' ({error.strerror or error}): free some "
            "space, or set KD_D2_CACHE to a folder that can be written to."
        ) from error
    return path


def _require_readable(file: str) -> None:
    """
    Raises:
        ZooError: the file is no whole checkpoint.
    """
    # Imports the model zoo
    from kd_d2.checkpoint.reading import CheckpointError, read_checkpoint

    try:
        read_checkpoint(file)
    except CheckpointError as error:
        if not _is_whole(file, error):
            raise ZooError(f"{error} It was left as it is, and not added.") from error


def _is_whole(file: str, error: Exception) -> bool:
    """Whether a file was refused only for objects in it (of an optimiser, say), which can run code.

    It can be converted still, by somebody who trusts it.
    """
    cause = error.__cause__
    if not isinstance(cause, pickle.UnpicklingError):
        return False
    if file.endswith(".pkl"):
        return " " not in str(cause)  # the mere name of a class
    return "GLOBAL" in str(cause)
