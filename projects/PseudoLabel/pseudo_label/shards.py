"""Shards: files of the detections in up to so many images, whole or not there, and checked.

A shard is ``<index>-<hash of its images>.npz`` and, when it is complete, ``.done`` beside it, which
says how many bytes it has, their hash, and of which run it is. The same contents are the same bytes
on every machine.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .detections import Detections
from .setting_names import ELSEWHERE

SIZE = 1000
"""Images of a shard."""

USED, FAILED, UNCERTAIN, AMBIGUOUS, EMPTY = range(5)
"""What becomes of an image: its labels are used; it could not be read; it is dropped because it has
no pseudo box but something that may be an object; because too many of its boxes are uncertain;
because it has no pseudo box at all, and such images are not wanted."""

_RECORD = {"run": str, "failed": dict, "bytes": int, "sha256": str}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # in place of the time, which would change the bytes


class ShardError(ValueError):
    """A shard that is not as it was written, or that belongs to another run."""


@dataclass(frozen=True)
class Shard:
    """Images ``first`` to ``last - 1`` of a run's list."""

    index: int
    first: int
    last: int
    name: str

    def __len__(self) -> int:
        return self.last - self.first


@dataclass
class ShardContents:
    """What a shard holds.

    Attributes:
        detections: of its images, by image and then by falling score.
        sizes: (k, 2) int32, height and width of each of its k images as it is seen, that is turned
            as its EXIF says; (0, 0) of those that cannot be read.
        failed: number of an image in the run's list -> why it cannot be read.
        status: (k,) int8, what becomes of each image; None: ``USED``, but for those that failed.
        highest: (k, C) float32, the highest score that any teacher gave each unified class in each
            image, on the scale of the detections; None: that of the detections.
    """

    detections: Detections
    sizes: np.ndarray
    failed: dict[int, str]
    status: np.ndarray | None = None
    highest: np.ndarray | None = None

    def image_status(self, first: int) -> np.ndarray:
        """(k,) int8; ``first`` is the number of the shard's first image."""
        if self.status is not None:
            return self.status
        status = np.full(len(self.sizes), USED, np.int8)
        status[[number - first for number in self.failed]] = FAILED
        return status


def split(images: Iterable[str], size: int = SIZE) -> list[Shard]:
    """Cuts a list of images, of any length, into shards.

    Args:
        images: one text for each image that stands for it, e.g. its path.
    """
    shards, images = [], iter(images)
    for index in itertools.count():
        chunk = list(itertools.islice(images, size))
        if not chunk:
            return shards
        digest = hashlib.sha256("\n".join(chunk).encode()).hexdigest()[:8]
        first = index * size
        shards.append(Shard(index, first, first + len(chunk), f"{index:06d}-{digest}"))


def write_shard(
    folder: Path, shard: Shard, contents: ShardContents, run: str, made_of: str | None = None
) -> None:
    """Writes a shard, and then that it is done.

    Args:
        run: hash of all that the contents of every shard in the folder depend on.
        made_of: hash of the shards that this one is made of, where they may be made anew.
    """
    arrays = contents.detections.arrays() | {"sizes": contents.sizes.astype(np.int32)}
    arrays["status"] = contents.image_status(shard.first).astype(np.int8)
    if contents.highest is not None:
        arrays["highest"] = contents.highest.astype(np.float32)
    data = pack(arrays)
    record = {
        "run": run,
        "images": len(shard),
        "detections": len(contents.detections),
        "failed": {str(k): v for k, v in sorted(contents.failed.items())},
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if made_of is not None:
        record["made_of"] = made_of
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{shard.name}.npz", data)
    _write(folder / f"{shard.name}.done", json.dumps(record, sort_keys=True).encode())


def is_done(folder: Path, shard: Shard, run: str, made_of: str | None = None) -> bool:
    """Whether a whole shard of this run is there; the file is looked at by its size only.

    Args:
        made_of: what it must be made of; None: that does not matter.

    Raises:
        ShardError: it is there, of another run.
    """
    record = done_record(folder, shard)
    if record is None:
        return False
    if record["run"] != run:
        raise ShardError(
            f"{folder / shard.name}.done is of another run, with other settings, weights or "
            f"images. {ELSEWHERE}"
        )
    if made_of is not None and record.get("made_of") != made_of:
        return False
    path = folder / f"{shard.name}.npz"
    return path.exists() and path.stat().st_size == record["bytes"]


def undone(
    folder: Path, shards: Sequence[Shard], run: str, made_of: Mapping[str, str] | None = None
) -> list[Shard]:
    """Those of the shards of this run that are not there, or not whole.

    Args:
        made_of: name of a shard -> what it must be made of.

    Raises:
        ShardError: one is there, of another run.
    """
    made_of = made_of or {}
    return [x for x in shards if not is_done(folder, x, run, made_of.get(x.name))]


def read_shard(folder: Path, shard: Shard) -> ShardContents:
    """
    Raises:
        ShardError: it is missing, incomplete or changed.
    """
    record, path = done_record(folder, shard), folder / f"{shard.name}.npz"
    if record is None or not path.exists():
        raise ShardError(f"{path} is not complete: run the stage that writes it again.")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ShardError(f"{path} was changed after it was written: delete it, and run again.")
    arrays = unpack(data)
    sizes, status, highest = (arrays.pop(x, None) for x in ("sizes", "status", "highest"))
    failed = {int(k): v for k, v in record["failed"].items()}
    return ShardContents(Detections(**arrays), sizes, failed, status, highest)


def done_record(folder: Path, shard: Shard) -> dict[str, Any] | None:
    """What was written when a shard was done; None: it is not done, or nobody can read that."""
    try:
        record = json.loads((folder / f"{shard.name}.done").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    whole = all(isinstance(record.get(key), kind) for key, kind in _RECORD.items())
    return record if whole else None


def forget_failed(folder: Path, shards: Sequence[Shard]) -> None:
    """Shards with images that could not be read are no longer done, and so will be made again."""
    for shard in shards:
        record = done_record(folder, shard)
        if record and record["failed"]:
            (folder / f"{shard.name}.done").unlink(missing_ok=True)


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file; equal arrays give equal bytes, which ``np.savez`` does not promise."""
    buffer = io.BytesIO()
    # not compressed, as versions of zlib compress differently
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.create_system = 3  # the same from Windows
            archive.writestr(entry, inner.getvalue())
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of :func:`pack`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, even where several workers write the same file at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
