"""Hands out the images of shards that no other worker has, batch by batch, and reads them."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Sampler

from .claims import Claims
from .reading import ImageReader
from .run_folder import ImageRecord, RunFolder
from .shards import Shard, is_done


class Task(NamedTuple):
    """An image that a teacher is to see.

    Attributes:
        teacher: number of the teacher.
        shard: number of the shard that the image is in.
        image: its number in the run's list.
    """

    teacher: int
    shard: int
    image: int
    record: ImageRecord


class ShardQueue(Sampler[list[Task]]):
    """Batches of the shards that this process gets, each claimed when its first batch is asked for.

    A batch is of consecutive images of one shard, whoever does it, as padding to the largest image
    of a batch changes scores a little. One pass goes through all shards once; those that others
    hold may be free in the next pass.

    Args:
        claims: of the folder of each teacher.
        batch: images of a batch; the last one of a shard may have fewer.

    Raises (from a pass):
        ShardError: there is a shard of another run.
    """

    def __init__(self, run: RunFolder, claims: Sequence[Claims], batch: int):
        self._run, self._claims, self._batch = run, claims, batch
        teachers = range(len(run.teachers))
        self._undone = [(teacher, shard) for teacher in teachers for shard in run.shards]

    def __iter__(self) -> Iterator[list[Task]]:
        for teacher, shard in self.undone():
            if not self._claims[teacher].claim(shard.name):
                continue
            if self._is_done(teacher, shard):  # since it was looked at
                self._claims[teacher].release(shard.name)
                continue
            yield from self._batches(teacher, shard)

    def undone(self) -> list[tuple[int, Shard]]:
        """Teachers and shards that nobody has done yet."""
        self._undone = [work for work in self._undone if not self._is_done(*work)]
        return self._undone

    def release(self, teacher: int, shard: Shard) -> None:
        """The shard is written."""
        self._claims[teacher].release(shard.name)

    def _is_done(self, teacher: int, shard: Shard) -> bool:
        record = self._run.teachers[teacher]
        return is_done(self._run.raw(record), shard, record.run)

    def _batches(self, teacher: int, shard: Shard) -> Iterator[list[Task]]:
        tasks = [
            Task(teacher, shard.index, number, record)
            for number, record in enumerate(self._run.images(shard), shard.first)
        ]
        for start in range(0, len(tasks), self._batch):
            yield tasks[start : start + self._batch]


class TaskImages(Dataset):
    """Reads the image of a task for its teacher.

    Args:
        readers: of the teachers.
    """

    def __init__(self, readers: Sequence[ImageReader]):
        self._readers = readers

    def __getitem__(self, task: Task) -> dict[str, Any]:
        """What :class:`ImageReader` gives, and the numbers of the task."""
        numbers = {"teacher": task.teacher, "shard": task.shard, "number": task.image}
        return numbers | self._readers[task.teacher](task.record)


def build_loader(
    queue: ShardQueue, readers: Sequence[ImageReader], num_workers: int, pin_memory: bool
) -> DataLoader:
    """A loader of the batches of ``queue``, in their order; each of its passes is one of theirs."""
    return DataLoader(
        TaskImages(readers),
        batch_sampler=queue,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_parent,
        persistent_workers=num_workers > 0,
    )


def end_readers(loader: DataLoader) -> None:
    """Ends the processes that read, which SIGTERM does not end."""
    if loader.num_workers and loader._iterator is not None:
        loader._iterator._shutdown_workers()  # torch has no public way


def _as_it_is(batch: list) -> list:
    return batch


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and schedulers signal all processes; the parent ends these when the batch is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
