"""Files that exist whole or not at all, and their hashes."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

__all__ = ["atomic_write", "earlier_file_kept", "file_sha256"]


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open a file that appears under ``path`` only when it is completely on disk.

    The data go to a hidden file in the same folder (a rename across disks is not atomic), are
    flushed and synced, and then take the place of ``path``. After an error ``path`` is what it was.
    The hidden file has one fixed name per target, so that a killed process leaves at most one.

    Args:
        path: the final name. A path of a remote store (``scheme://``) is written directly, because
            such stores show an object only when its upload is complete.
        mode: ``"wb"`` or ``"w"``.

    Raises:
        OSError: it could not be written.
    """
    if "://" in path:
        with PathManager.open(path, mode) as remote:
            yield remote
        return
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        with open(temporary, mode) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error, RuntimeError) and "inline_container" in str(error):
            # what torch.save makes of any OSError of the file it writes to
            free = shutil.disk_usage(folder).free >> 20
            raise OSError(
                f"'{path}' could not be written, and is what it was before; {free} MiB are free "
                "there: make space, or write to another disk."
            ) from error
        raise
    _sync_folder(folder)


@contextmanager
def earlier_file_kept(path: str, always: bool = False) -> Iterator[None]:
    """What stands in a file now stands there again if the block fails.

    Args:
        path: a file, or where there is none yet; one of a remote store is left alone.
        always: also if the block succeeds.
    """
    old = None
    if "://" not in path and os.path.isfile(path):
        with open(path, "rb") as f:
            old = f.read()
    done = False
    try:
        yield
        done = True
    finally:
        if old is not None and (always or not done) and comm.is_main_process():
            with atomic_write(path) as f:
                f.write(old)


def _sync_folder(folder: str) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems refuse to sync a folder; the rename itself is done.
        pass
    finally:
        os.close(descriptor)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits (``detectron2://`` and URLs work)."""
    digest = hashlib.sha256()
    with open(PathManager.get_local_path(path), "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
