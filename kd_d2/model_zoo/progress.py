"""How far a download is: a bar in a terminal, a line now and then in a log."""

import logging
import sys
import time

import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Tells about a file that grows.

    Args:
        name: of the file.
        every: seconds between two lines where there is no terminal.
    """

    def __init__(self, name: str, every: float = 10.0):
        self._name, self._every = name, every
        self._told_at, self._told = time.monotonic(), 0
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int | None) -> None:
        """
        Args:
            done: bytes there are now; fewer than before if the download had to begin anew.
            total: bytes there will be, if known.
        """
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._told_at < self._every:
            return
        speed = max(done - self._told, 0) / (now - self._told_at) / 2**20
        self._told_at, self._told = now, done
        share = f" of {total / 2**20:.1f} MiB ({100 * done // total} %)" if total else " MiB"
        logger.info("%s: %.1f%s, %.1f MiB/s", self._name, done / 2**20, share, speed)
