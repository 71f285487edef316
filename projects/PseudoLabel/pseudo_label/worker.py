"""One worker of a run: reads, detects, and writes shards.

Symbols: n detections of an image, k images of a shard.
"""

from typing import Any

import numpy as np
import torch

from .detections import Detections
from .inference import NOT_FINITE, Detector, Found
from .progress import Progress
from .reading import ImageReader
from .run_folder import RunError, RunFolder
from .settings import GenerateSettings
from .shard_queue import ShardQueue, build_loader, end_readers
from .shards import Shard, ShardContents, write_shard
from .stopping import StopRequest
from .teachers import load_teacher, source_of, teacher_config, teacher_record
from .tta import TTA


class Worker:
    """Has the teachers, all on the CPU but the one whose turn it is, and processes that read.

    Raises:
        RunError: the run was prepared with other settings.
        ValueError, OSError: a teacher cannot be used.
    """

    def __init__(
        self, run: RunFolder, settings: GenerateSettings, device: torch.device, queue: ShardQueue
    ):
        self._run, self.queue = run, queue
        self._shards = run.shards
        self._begun: dict[tuple[int, int], BegunShard] = {}
        self._detectors, readers = [], []
        for record in run.teachers:
            source = source_of(record)
            if teacher_record(source, settings, run.image_list, {}).run != record.run:
                raise RunError(
                    f"Teacher {record.name} or the settings are not those that {run.folder} was "
                    "prepared with: prepare it again."
                )
            cfg = teacher_config(source, settings)
            built, tta = load_teacher(record.name, cfg), TTA.of(cfg, settings)
            self._detectors.append(Detector(built, device, settings.flip, settings.amp, tta))
            readers.append(ImageReader(cfg, settings.max_pixels, tta.sizes))
        self._on_device: Detector | None = None
        on_gpu = device.type == "cuda"
        self._loader = build_loader(queue, readers, settings.num_workers, on_gpu)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        end_readers(self._loader)

    def work(self, progress: Progress, stop: StopRequest) -> None:
        """Does all shards that nobody else has, or ends after a batch when it is asked to."""
        waiting = None
        progress.watch.go_on()
        for batch in self._loader:
            found = self._detect(batch)
            # of the batch before, while the device is busy with this one
            if waiting:
                self._keep(*waiting, progress)
            waiting = batch, found
            if stop:
                break
        if waiting:
            self._keep(*waiting, progress)

    def _detect(self, batch: list[dict[str, Any]]) -> Found:
        detector = self._detectors[batch[0]["teacher"]]
        if detector is not self._on_device:
            if self._on_device:
                self._on_device.to_cpu()
            detector.to_device()
            self._on_device = detector
        return detector([image for image in batch if "image" in image])

    def _keep(self, batch: list[dict[str, Any]], found: Found, progress: Progress) -> None:
        """Takes the results, and writes the shard if that was its last batch."""
        teacher, index = batch[0]["teacher"], batch[0]["shard"]
        begun = self._begun.setdefault((teacher, index), BegunShard(self._shards[index], teacher))
        record, tables = self._run.teachers[teacher], iter(found.tables())
        for image in batch:
            begun.add(image, next(tables) if "image" in image else None)
        if begun.is_whole:
            write_shard(self._run.raw(record), begun.shard, begun.contents(), record.run)
            self.queue.release(teacher, begun.shard)
            del self._begun[teacher, index]
        progress.add(record.name, len(batch))


class BegunShard:
    """What one teacher has found so far in the images of a shard."""

    def __init__(self, shard: Shard, teacher: int):
        self.shard, self._teacher = shard, teacher
        self._sizes = np.zeros((len(shard), 2), np.int32)
        self._failed: dict[int, str] = {}
        self._tables: dict[int, np.ndarray] = {}

    def add(self, image: dict[str, Any], table: np.ndarray | None) -> None:
        """
        Args:
            image: as the loader gives it.
            table: (n, 7) box, score, class, agreement; None: it cannot be read, or not be used.
        """
        number = image["number"]
        if table is None:
            self._failed[number] = image.get("error", NOT_FINITE)
        else:
            self._sizes[number - self.shard.first] = image["height"], image["width"]
            self._tables[number] = table

    @property
    def is_whole(self) -> bool:
        return len(self._failed) + len(self._tables) == len(self.shard)

    def contents(self) -> ShardContents:
        table = np.concatenate([np.zeros((0, 7), np.float32), *self._tables.values()])
        counts = [len(x) for x in self._tables.values()]
        found = Detections.make(
            np.repeat(np.array([*self._tables], np.int32), counts),
            table[:, :4],
            table[:, 4],
            table[:, 5],
            teacher=self._teacher,
            agreement=table[:, 6],
        )
        return ShardContents(found.by_image(), self._sizes, self._failed)
