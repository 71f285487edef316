"""A training loader that a resumed run enters where it was left.

Detectron2's sampler restarts from its seed, and the random numbers of its mapper depend on which
worker met which image when. Here the order of batches is a function of the seed alone, and the
augmentation of an image is a function of the seed and of its position in that order. So a resumed
run sees the batches that the uninterrupted run would have seen, with any number of workers, and
nothing about the data has to be written to the checkpoint.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_train_loader,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from kd_d2.data.dataset_shares import read_by_shares
from kd_d2.data.labels import check_reliable_boxes, check_training_labels
from kd_d2.data.mappers import ImageError, UnusableImage
from kd_d2.data.reading import explained_training_data

from .seeding import seed_from, seeded

__all__ = ["BatchOrder", "SeededItems", "build_train_loader", "check_shares"]


class SeededItems(Dataset):
    """Mapped items whose randomness follows from the seed and the position, not from the worker.

    Args:
        items: a map-style data set that maps (and augments) on access.
        seed: the run's seed.
    """

    def __init__(self, items: Dataset, seed: int):
        self.items = items
        self.seed = seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]):
        """Return item ``key[0]``, augmented as fits position ``key[1]`` of the global order.

        Where its image is unusable and may be skipped, the next good item takes its place. (None
        from the mapper would let Detectron2 choose, which fails since Python 3.11.)

        Raises:
            ImageError: no image of the data set can be used.
        """
        index, position = key
        for step in range(len(self)):
            with seeded(seed_from(self.seed, position)), contextlib.suppress(UnusableImage):
                return self.items[(index + step) % len(self)]
        raise ImageError(f"None of the {len(self)} images of the training set can be read.")


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """This rank's batches of (index, position), from batch ``start`` on.

    Args:
        sampler: an endless sampler of Detectron2, which yields this rank's share of the indices.
        batch_size: images per rank.
        groups: one small integer per item; a batch holds items of one group (portrait or landscape,
            as Detectron2 groups them to save padding). None: no groups.
    """

    def __init__(self, sampler: Sampler, batch_size: int, groups: Sequence[int] | None = None):
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = groups
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[int, list[tuple[int, int]]] = {}
        rank, ranks = comm.get_rank(), comm.get_world_size()
        for i, index in enumerate(self.sampler):
            group = self.groups[index] if self.groups is not None else 0
            batch = waiting.setdefault(group, [])
            batch.append((index, i * ranks + rank))
            if len(batch) == self.batch_size:
                yield waiting.pop(group)


def check_shares(cfg: CfgNode, processes: int) -> None:
    """
    Raises:
        ValueError: so many processes cannot share the batch equally.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch < 1 or batch % processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which {processes} processes cannot share equally: "
            "make it a multiple of their number."
        )


def build_train_loader(cfg: CfgNode, mapper) -> DataLoader:
    """Build the training loader of a config; Detectron2's data sets, filters and samplers.

    Args:
        cfg: DATASETS.TRAIN, DATALOADER.*, SOLVER.IMS_PER_BATCH, SEED.
        mapper: from a data set dict to the model's input.

    Returns:
        A loader of lists of inputs, with a ``batch_sampler`` whose ``start`` is the iteration to
        begin with. (A data set that is an ``IterableDataset`` gets Detectron2's own loader.)

    Raises:
        ValueError: the batch cannot be divided among the processes, or a data set cannot be read
            or lacks the labels that the student needs.
    """
    ranks = comm.get_world_size()
    check_shares(cfg, ranks)
    with explained_training_data(cfg):
        read = read_by_shares(cfg) if cfg.DATALOADER.DATASET_SHARES else {}
        parts = build_detection_train_loader.from_config(cfg, mapper=mapper, **read)
        dataset, sampler = parts["dataset"], parts["sampler"]
        if isinstance(dataset, IterableDataset):
            return build_detection_train_loader(**parts)
        groups = None
        if parts["aspect_ratio_grouping"]:
            groups = [int(d["width"] > d["height"]) for d in dataset]
    if isinstance(dataset, list):
        # A mapper of another class may take its labels from anywhere
        if type(getattr(mapper, "mapper", mapper)) is DatasetMapper:
            check_training_labels(cfg, dataset)
        check_reliable_boxes(cfg, dataset)
        dataset = DatasetFromList(dataset, copy=False)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # Without one of its own, a loader draws from the generator of the step in which it starts
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        SeededItems(MapDataset(dataset, parts["mapper"]), seed),
        batch_sampler=BatchOrder(sampler, parts["total_batch_size"] // ranks, groups),
        num_workers=parts["num_workers"],
        collate_fn=trivial_batch_collator,
        generator=generator,
    )
