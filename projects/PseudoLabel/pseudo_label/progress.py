"""How far all workers of a run are together, on stderr."""

import os
import sys
import time

from tqdm import tqdm

from .run_folder import RunFolder
from .speed import Stopwatch

_COUNT_EVERY = 20.0  # seconds between two looks at what the others have done


class Progress:
    """Counts images of shards that are done, once for each teacher; tells this worker's speed.

    Leaving the context writes what this worker has done, and in what time.

    Attributes:
        watch: of this worker.
    """

    def __init__(self, run: RunFolder):
        self._run, self._shards = run, run.shards
        self.images, self.watch = 0, Stopwatch()
        self._start = self._counted = time.monotonic()
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=run.num_images * len(run.teachers),
            initial=self._done(),
            desc="pseudo labels",
            unit=" images",
            smoothing=0,  # shards come in lumps
            mininterval=0.5 if on_terminal else 30,
            dynamic_ncols=on_terminal,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._count()
        self._bar.close()
        self.watch.write(self._run)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def images_per_second(self) -> float:
        """Of this worker."""
        return self.images / max(self.seconds, 1e-9)

    def add(self, teacher: str, images: int) -> None:
        """This worker has done so many more of a teacher."""
        self.images += images
        self.watch.add(teacher, images)
        now = time.monotonic()
        if now - self._counted > _COUNT_EVERY:
            self._count()

    def _count(self) -> None:
        self._counted = time.monotonic()
        self._bar.set_postfix_str(f"this worker {self.images_per_second:.1f}/s", refresh=False)
        self._bar.update(self._done() - self._bar.n)

    def _done(self) -> int:
        done = 0
        for teacher in self._run.teachers:
            folder = self._run.raw(teacher)
            files = set(os.listdir(folder)) if folder.is_dir() else set()
            done += sum(len(s) for s in self._shards if f"{s.name}.done" in files)
        return done
