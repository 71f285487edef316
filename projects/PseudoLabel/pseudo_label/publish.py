"""A folder of files that are made together: all of them are moved to their places when all are
whole, and no file that somebody has changed or put there is lost."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_d2.checkpoint import atomic_write, file_sha256

SIDE_CAR = "provenance.json"
NEW = ".new"


class ChangedFileError(ValueError):
    """A file that would be overwritten is not as it was written, or is somebody else's."""


@contextmanager
def published(folder: Path, names: Sequence[str], record: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a hidden folder to make files in; they replace those of the last time at the end.

    Args:
        folder: where they belong.
        names: of the files and folders that will be made.
        record: what ``provenance.json`` says besides their hashes.

    Raises:
        ChangedFileError: one of them, or of those of the last time, was changed since.
    """
    new = folder / NEW
    if (new / SIDE_CAR).exists():  # the last time was cut off while its files were moved
        _move(folder)
    _check_unchanged(folder, names)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        files = {name: tree_sha256(new / name) for name in names}
        with atomic_write(str(new / SIDE_CAR), "w") as f:
            json.dump({**record, "files": files}, f, indent=1, sort_keys=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _move(folder)


def read_side_car(folder: Path) -> dict[str, Any] | None:
    """What ``provenance.json`` says; None where there is none that can be read."""
    try:
        content = json.loads((folder / SIDE_CAR).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def tree_sha256(path: Path) -> str:
    """SHA-256 of a file or, of a folder, of the names and hashes of all files in it."""
    if not path.is_dir():
        return file_sha256(str(path))
    digest = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        digest.update(f"{name}\0{tree_sha256(path / name)}\n".encode())
    return digest.hexdigest()


def _check_unchanged(folder: Path, names: Sequence[str]) -> None:
    written = _files(folder)
    for name in sorted({*names, *written}):
        path = folder / name
        if path.exists() and written.get(name) != tree_sha256(path):
            raise ChangedFileError(
                f"{path} was changed or put there by somebody else, and may hold labels of people: "
                "move it to another folder, and try again."
            )


def _files(folder: Path) -> dict[str, str]:
    return (read_side_car(folder) or {"files": {}})["files"]


def _move(folder: Path) -> None:
    """Moves what is complete in the hidden folder; can be repeated where it was cut off."""
    new = folder / NEW
    files = _files(new)
    for name in sorted({*files, *_files(folder)}):
        path = folder / name
        if name in files and not (new / name).exists():
            continue  # moved before it was cut off
        if path.is_dir():
            shutil.rmtree(path)
        elif name not in files:
            path.unlink(missing_ok=True)
        if name in files:
            os.replace(new / name, path)
    os.replace(new / SIDE_CAR, folder / SIDE_CAR)
    shutil.rmtree(new)
