"""Files from the web, whole and checked, kept in a cache."""

import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_path, is_offline, remove_note, source_of, turn, write_note
from .progress import Progress
from .table import ZooError
from .transfer import Interrupted, receive, scheme_of
from .verify import Digest, known_digest, looks_wrong, mismatch

__all__ = ["DEFAULT_PATIENCE", "Patience", "fetch", "publish", "require_right", "store"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to bear with a network.

    Attributes:
        waits: seconds to wait after each request in a row that brought nothing new; there is one
            request more than there are waits.
        timeout: seconds to wait for a connection and for each piece of a file.
        report_every: seconds between two lines on the progress where there is no terminal.
        stale_after: seconds to wait for another process that gets nowhere with the same file.
    """

    waits: tuple[float, ...] = (1, 2, 4, 8)
    timeout: float = 60
    report_every: float = 10
    stale_after: float = 900


DEFAULT_PATIENCE = Patience()


def fetch(url: str, sha256: str | None = None, patience: Patience | None = None) -> Path:
    """The local file of a URL, fetched if it is not in the cache yet.

    An interrupted download goes on where it stopped, in this process or a later one. The file gets
    its name when it is whole, its hash is right (``sha256``, or the digits in the name where
    Detectron2 or torchvision published it), and it is on disk. One process fetches it, others wait.

    Args:
        url: http:// or https://.
        sha256: of the whole file, if known.
        patience: with the network; ``DEFAULT_PATIENCE`` if None.

    Returns:
        an existing file.

    Raises:
        ZooError: one sentence on what is wrong and what to do.
    """
    if scheme_of(url) not in ("http", "https"):
        raise ZooError(f"'{source_of(url)}' is not fetched: only http:// and https:// are.")
    if re.search(r"[^!-~]", url):
        raise ZooError(
            f"'{source_of(url)}' has characters that an address has as %XX: write it so."
        )
    expected = known_digest(url, sha256)

    def get(part: Path, patience: Patience) -> bool:
        if scheme_of(url) == "http" and expected is None:
            logger.warning(
                "%s comes over http://, and its hash is not known: anybody on the way could "
                "change it.",
                source_of(url),
            )
        return _receive_all(url, part, expected, patience)

    path = cache_path(url)
    while True:
        stored = store(path, get, expected, source_of(url), patience)
        if (path := cache_path(url)) == stored:  # else another host's file came first
            break
    return require_right(stored, expected)


def store(
    path: Path,
    get: Callable[[Path, Patience], bool],
    expected: Digest | None,
    source: str,
    patience: Patience | None = None,
) -> Path:
    """The file at ``path`` in the cache, or what ``get`` puts there.

    Args:
        path: the final name.
        get: writes to the file it is given; True if an earlier attempt's bytes are part of it.
        expected: of the file's hash.
        source: where it comes from, for messages.
        patience: with the network; ``DEFAULT_PATIENCE`` if None.

    Raises:
        ZooError: the file cannot be had.
    """
    patience = patience or DEFAULT_PATIENCE
    if path.is_file():
        return require_right(path, expected)
    if is_offline():
        raise ZooError(
            f"KD_D2_OFFLINE is set and {source} is not in the cache: fetch it on a machine with a "
            f"network and put it at '{path}', or unset KD_D2_OFFLINE."
        )
    try:
        with turn(path, patience.stale_after) as part:
            if not path.is_file():  # another process may have been faster
                logger.info("Fetching %s into %s", source, path)
                if get(part, patience) and mismatch(part, expected):
                    logger.warning("%s does not fit together: once more, from its start.", source)
                    part.unlink()
                    get(part, patience)
                publish(part, path, expected, source, origin=source)
    except OSError as error:
        raise ZooError(
            f"{source} could not be stored at '{path}' ({error.strerror or error}): free some "
            "space, or set KD_D2_CACHE to a folder that can be written to."
        ) from error
    return path


def publish(part: Path, path: Path, expected: Digest | None, source: str, origin: str) -> None:
    """Gives a complete file its name if it is the right one, and deletes it if it is not.

    Args:
        part: the file.
        path: its name.
        expected: of its hash.
        source: where it comes from, for messages.
        origin: the address that it stands for.

    Raises:
        ZooError: it has another hash, or is an error page.
    """
    with open(part, "rb") as f:
        what = looks_wrong(f.read(512))
    if what or (wrong := mismatch(part, expected)):
        part.unlink()
        remove_note(part, "of")
        if what:
            raise ZooError(f"{source} is {what}, and no weights: check the address.")
        raise ZooError(
            f"{source} is not the file {expected}: {wrong}, so that it was damaged or changed; it "
            "was deleted. Try again, and do not use the file if that does not help."
        )
    with open(part, "rb+") as f:
        os.fsync(f.fileno())
    # Noted first: a file without a note would count as any host's
    write_note(path, "origin", {"source": origin})
    os.replace(part, path)
    remove_note(part, "of")


def require_right(path: Path, expected: Digest | None) -> Path:
    """A file of the cache, unless it is another than expected.

    Raises:
        ZooError: it is.
    """
    if wrong := mismatch(path, expected):
        raise ZooError(
            f"'{path}' is not the file {expected}: {wrong}; delete it, and it is fetched anew."
        )
    return path


def _receive_all(url: str, part: Path, expected: Digest | None, patience: Patience) -> bool:
    """Asks for a file until it is whole; as long as every request brings something, for ever."""
    source = source_of(url)
    failures, most = 0, _size(part)
    with Progress(source.rpartition("/")[2], patience.report_every) as progress:
        while True:
            try:
                return receive(url, part, progress, patience.timeout, expected is not None)
            except Interrupted as error:
                failures = 1 if _size(part) > most else failures + 1
                most = max(most, _size(part))
                reason = str(error)
            if failures > len(patience.waits):
                kept = " What has arrived is kept, and the next attempt goes on from there."
                raise ZooError(
                    f"{source} could not be fetched ({reason}; {failures} attempts): check the "
                    "network, or download the file by other means and put it at "
                    f"'{cache_path(url)}'.{kept if _size(part) else ''}"
                )
            wait = patience.waits[failures - 1]
            logger.warning("%s: %s; trying again in %g s.", source, reason, wait)
            time.sleep(wait)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
