"""Who works on what: files that only one of many processes, on many machines, can create.

A claim is ``<folder>/<name>.claim``, with the host and process that holds it. While that process
lives, it touches the file now and then; a claim that nobody has touched for long is free again.
"""

import contextlib
import json
import os
import socket
import threading
import uuid
from functools import cache
from pathlib import Path
from typing import Any

HEARTBEAT, STALE = 30.0, 600.0
"""Seconds between two touches, and without one after which a claim is free."""

_SUFFIX = ".claim"


class Claims:
    """The claims of this process in a folder; leaving the context releases them.

    Args:
        folder: is made if it is not there.
        heartbeat, stale: see above; the same for all who share a folder.
    """

    def __init__(self, folder: str | Path, heartbeat: float = HEARTBEAT, stale: float = STALE):
        self._folder = Path(folder)
        self._heartbeat, self._stale = heartbeat, stale
        self._held: set[str] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Claims":
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        for name in tuple(self._held):
            self.release(name)

    def claim(self, name: str) -> bool:
        """Whether ``name`` is now this process's; not if another one holds it, or it does already.

        In the worst case two hold the same: both find a claim stale, and the slower one takes away
        the new claim of the faster one. Then both do the same work and write equal bytes.
        """
        path = self._path(name)
        if path.exists():
            if not self._is_stale(path):
                return False
            away = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.stale")
            # whoever renames it may go on; for the others it is not there any more
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, away)
                os.unlink(away)
        if not _created(path, json.dumps(_this_process())):
            return False
        self._held.add(name)
        if not self._thread:  # not before: processes that fork should have no threads yet
            self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._thread.start()
        return True

    def release(self, name: str) -> None:
        """Gives a claim back, unless it is another process's by now."""
        self._held.discard(name)
        path = self._path(name)
        if _owner(path) == _this_process():
            path.unlink(missing_ok=True)

    def living(self) -> list[str]:
        """Who else holds claims here that are not stale: "process 17 on host"."""
        others = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            owner = _owner(path)
            if owner and path.stem not in self._held and not self._is_stale(path):
                others.append(f"process {owner['pid']} on {owner['host'].partition(' ')[0]}")
        return list(dict.fromkeys(others))

    def clear(self) -> None:
        """Removes all claims, of whomever: for when the work is done."""
        self._held.clear()
        left = self._folder.glob(f".*{_SUFFIX}.*")  # of processes that were killed
        for path in (*self._folder.glob(f"*{_SUFFIX}"), *left, self._clock):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat):
            for name in tuple(self._held):
                # stolen while this process slept, or the file server is away for a moment
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))

    def _is_stale(self, path: Path) -> bool:
        owner = _owner(path)
        if owner and _has_ended(owner):
            return True
        try:
            return self._now() - path.stat().st_mtime > self._stale
        except FileNotFoundError:
            return True

    @property
    def _clock(self) -> Path:
        return self._folder / ".clock"

    def _now(self) -> float:
        """By the file system's clock, which is the one for all machines, other than theirs."""
        self._clock.touch()
        return self._clock.stat().st_mtime


def _created(path: Path, text: str) -> bool:
    """Makes a file with all of its text, unless there is one."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    new.write_text(text)
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:  # there are no hard links; who is killed now leaves a claim without an owner
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with open(descriptor, "w") as f:
            f.write(text)
    finally:
        new.unlink(missing_ok=True)
    return True


def _owner(path: Path) -> dict[str, Any] | None:
    """Who holds a claim; None: nobody does, or it is about to be written, or was never."""
    try:
        owner = json.loads(path.read_bytes())
        return owner if {"host", "pid", "start"} <= owner.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _this_process() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "start": _start(os.getpid())}


@cache
def _host() -> str:
    """The machine and, as containers of one name may share it, what the process numbers are of."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did.

    None if it has ended, and on systems that do not say; there claims are judged by age alone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # ended, but its parent has not noticed


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether it is known that a process is no more; its number may be another one's by now."""
    same_host = owner["host"] == _host() and owner["start"] is not None
    return same_host and _start(owner["pid"]) != owner["start"]
