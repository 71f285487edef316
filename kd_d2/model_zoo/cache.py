"""Where fetched files are kept, and how processes take turns at fetching one."""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import portalocker  # iopath, which Detectron2 needs, brings it along

from .table import ZooError

logger = logging.getLogger(__name__)

_LONGEST_NAME = 200  # file systems allow 255, and ".part.of-PID.json" has to fit


def cache_folder() -> Path:
    """$KD_D2_CACHE; else iopath's folder, $FVCORE_CACHE or ~/.torch/iopath_cache."""
    folder = os.environ.get("KD_D2_CACHE") or os.environ.get("FVCORE_CACHE")
    return Path(folder or "~/.torch/iopath_cache").expanduser()


def is_offline() -> bool:
    """Whether KD_D2_OFFLINE says that nothing may be fetched."""
    return os.environ.get("KD_D2_OFFLINE", "") not in ("", "0")


def source_of(url: str) -> str:
    """An address without its query and fragment, which may hold somebody's token."""
    return url.partition("#")[0].partition("?")[0]


def cache_path(url: str) -> Path:
    """The file that a URL is kept in: iopath's, so that what Detectron2 fetched is found.

    iopath leaves out the host, so that two hosts may mean the same file. The second one to be
    fetched then lives in a folder of its host. A query becomes part of the name.

    Raises:
        ZooError: the URL has no file name, or leads out of the cache.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ZooError(f"'{source_of(url)}' is no valid address ({error}): check it.") from error
    names = [name for name in parts.path.split("/") if name]
    if not names or parts.path.endswith("/"):
        raise ZooError(f"'{source_of(url)}' names no file: give the address of the file itself.")
    if any(name == ".." or "\\" in name for name in names):
        raise ZooError(f"'{source_of(url)}' leads out of its host's folder, and is not fetched.")
    stem, ending = os.path.splitext(names[-1])
    query = hashlib.sha256(parts.query.encode()).hexdigest()[:8] if parts.query else ""
    names[-1] = f"{stem[:_LONGEST_NAME]}{'-' + query if query else ''}{ending}"
    path = cache_folder().joinpath(*names)
    origin = read_note(path, "origin").get("source")
    if origin is not None and origin != source_of(url):
        path = cache_folder().joinpath(f"{parts.scheme}_{parts.netloc}".replace(":", "_"), *names)
    return path


def read_note(path: Path, what: str) -> dict:
    """What is noted beside a file; {} if nothing is, or nothing readable."""
    try:
        note = json.loads(_note(path, what).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(path: Path, what: str, note: dict) -> None:
    """Notes something beside a file, in ``NAME.what.json``."""
    temporary = _note(path, f"{what}-{os.getpid()}")
    temporary.write_text(json.dumps(note), encoding="utf-8")
    os.replace(temporary, _note(path, what))


def remove_note(path: Path, what: str) -> None:
    _note(path, what).unlink(missing_ok=True)


def _note(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}.json")


@contextlib.contextmanager
def turn(path: Path, stale_after: float, poll: float = 0.25) -> Iterator[Path]:
    """Waits until no other process or thread fetches ``path``, and keeps them waiting.

    The lock is the operating system's, and iopath's own: it ends with the process that holds it,
    however that ends.

    Args:
        path: the file to be fetched; its folder is made.
        stale_after: seconds without progress after which the holder counts as stuck.
        poll: seconds between two looks.

    Yields:
        the file to write to meanwhile.

    Raises:
        ZooError: the holder is stuck.
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    lock_path = path.with_name(path.name + ".lock")
    with open(lock_path, "a+", encoding="utf-8") as lock:
        if not _acquire(lock, part, stale_after, poll):
            # Two processes must not write to one file; whoever is the last to finish, wins
            part = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part")
        try:
            _sign(lock)
            yield part
        finally:
            try:
                portalocker.unlock(lock)
            except (OSError, portalocker.LockException):
                logger.debug("%s was not locked.", lock_path)


def _acquire(lock, part: Path, stale_after: float, poll: float) -> bool:
    """Takes the lock, or returns False where the file system has no locks."""
    seen, since, told = None, time.monotonic(), False
    while True:
        try:
            portalocker.lock(lock, portalocker.LOCK_EX | portalocker.LOCK_NB)
            return True
        except portalocker.LockException as error:
            if not _is_taken(error):
                logger.warning("%s cannot be locked: %s", lock.name, error)
                return False
        if not told:
            logger.info("Waiting for %s, which fetches %s.", _holder(lock), part.stem)
            told = True
        state = _state(part)
        now = time.monotonic()
        if state != seen:
            seen, since = state, now
        elif now - since > stale_after:
            raise ZooError(
                f"{_holder(lock)} holds '{lock.name}' and has not got on for "
                f"{stale_after:.0f} seconds: end that process, and try again."
            )
        time.sleep(poll)


def _state(part: Path) -> list[tuple]:
    """Names, sizes and times of what the holder writes; changes while it gets on."""
    files = []
    for file in sorted(part.parent.glob(glob.escape(part.name) + "*")):
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            files.append((file.name, stat.st_size, stat.st_mtime_ns))
    return files


def _is_taken(error: Exception) -> bool:
    """Whether somebody else has the lock; versions of portalocker tell it differently."""
    if isinstance(error, portalocker.AlreadyLocked):
        return True
    cause = error.args[0] if error.args else None
    return getattr(cause, "errno", None) in (errno.EAGAIN, errno.EACCES)


def _sign(lock) -> None:
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()


def _holder(lock) -> str:
    lock.seek(0)
    return lock.read(200).strip() or "another process"
