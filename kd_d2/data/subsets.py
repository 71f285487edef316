"""Nested shares of a data set, for trainings that have labels for a few of its images only.

Which images are chosen follows from their ids and a seed: they are put in the order of the SHA-256
of "<seed>:<image id>", and the first ones are taken. So 1 % lies in 2 %, and that in 5 %, whatever
the order of the images and whatever the machine. Split files hold the result, for people and other
programs; the registered data sets compute it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from .reading import read_dataset

__all__ = [
    "PERCENTAGES",
    "SEEDS",
    "SubsetError",
    "check_choice",
    "checksum",
    "divide",
    "hide_labels",
    "image_ids",
    "make_split",
    "read_split",
    "register_subset",
    "subset",
    "subset_name",
]

PERCENTAGES = (1, 2, 5, 10, 20, 50, 100)
"""Of the subsets that are registered from the start."""
SEEDS = (0, 1, 2, 3, 4)
"""Of the subsets that are registered from the start; the folds of a benchmark."""

_LABELS = ("annotations", "sem_seg_file_name", "pan_seg_file_name", "segments_info")
# Metadata that a subset must not claim: the files list other images
_ONLY_OF_THE_BASE = ("json_file", "panoptic_json")
_KEYS = {"dataset", "num_images", "images_sha256", "rest_sha256", "chosen_sha256", "image_ids"}

ImageId = int | str


class SubsetError(ValueError):
    """A subset that cannot be made or used. The message says what is wrong and what to do."""


def divide(ids: Iterable[ImageId], percent: int, seed: int) -> tuple[list[ImageId], list[ImageId]]:
    """Choose so many percent of the images, rounded (halves to the even), and at least one.

    Args:
        ids: of all images, in any order.
        percent: 1 to 100.
        seed: 0 or more.

    Returns:
        ids of the chosen images and of the rest, both sorted.

    Raises:
        SubsetError: percent or seed is out of range, or the ids cannot tell images apart.

    >>> divide(range(1, 11), 20, seed=0)
    ([4, 7], [1, 2, 3, 5, 6, 8, 9, 10])
    >>> divide(range(1, 11), 30, seed=0)[0]
    [4, 7, 9]
    """
    check_choice(percent, seed)
    ids = _sorted_ids(ids)
    order = sorted(ids, key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).digest())
    count = max(1, round(len(ids) * percent / 100))
    return sorted(order[:count]), sorted(order[count:])


def check_choice(percent: int, seed: int) -> None:
    """
    Raises:
        SubsetError: percent or seed is out of range.
    """
    if percent not in range(1, 101):
        raise SubsetError(f"{percent} percent cannot be chosen: give a whole number from 1 to 100.")
    if seed < 0:
        raise SubsetError(f"The seed {seed} is negative: give 0 or more.")


def _sorted_ids(ids: Iterable[ImageId]) -> list[ImageId]:
    ids = list(ids)
    if not ids:
        raise SubsetError("There are no images to choose from: give a data set that has some.")
    if {type(image) for image in ids} not in ({int}, {str}):
        raise SubsetError("The image ids are neither all whole numbers nor all texts: mend them.")
    ids.sort()
    twice = [a for a, b in zip(ids[:-1], ids[1:], strict=True) if a == b]
    if twice:
        raise SubsetError(
            f"The image id {twice[0]!r} occurs twice: give one data set whose ids are unique."
        )
    return ids


def checksum(ids: Sequence[ImageId]) -> str:
    """SHA-256 of sorted ids, one a line.

    >>> checksum([3, 10]) == hashlib.sha256(b"3\\n10").hexdigest()
    True
    """
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()


def make_split(dataset: str, ids: Iterable[ImageId], percent: int, seed: int) -> dict:
    """Content of a split file; see `divide`.

    Args:
        dataset: its name.
        ids: of all its images.
    """
    ids = list(ids)
    chosen, rest = divide(ids, percent, seed)
    return {
        "dataset": dataset,
        "percent": percent,
        "seed": seed,
        **_whole(ids),
        "num_rest": len(rest),
        "rest_sha256": checksum(rest),
        "num_chosen": len(chosen),
        "chosen_sha256": checksum(chosen),
        "image_ids": chosen,
    }


def _whole(ids: Iterable[ImageId]) -> dict:
    ids = _sorted_ids(ids)
    return {"num_images": len(ids), "images_sha256": checksum(ids)}


def read_split(
    path: str | os.PathLike, ids: Iterable[ImageId]
) -> tuple[list[ImageId], list[ImageId]]:
    """Read a split file.

    Args:
        path: of the file.
        ids: of all images of its data set, in any order.

    Returns:
        ids of the chosen images and of the rest, both sorted.

    Raises:
        SubsetError: the file is absent, is no split file or was changed, or is of other images.
    """
    split, ids = _open_split(path), list(ids)
    whole, chosen = _whole(ids), split["image_ids"]
    if any(split[key] != value for key, value in whole.items()):
        raise SubsetError(
            f"{path} divides the {split['num_images']} images of {split['dataset']}; these "
            f"{whole['num_images']} are not the same: load the whole of that data set, or make a "
            "split of this one with datasets/make_subset.py."
        )
    rest = sorted(set(ids) - set(chosen))
    if (checksum(chosen), checksum(rest)) != (split["chosen_sha256"], split["rest_sha256"]):
        raise SubsetError(f"{path} was changed after it was made: make or fetch it anew.")
    return chosen, rest


def _open_split(path: str | os.PathLike) -> dict:
    try:
        with open(path, encoding="utf-8") as f:
            split = json.load(f)
    except OSError as error:
        raise SubsetError(
            f"{path} cannot be read ({error.strerror}): make it with datasets/make_subset.py."
        ) from error
    except ValueError as error:
        raise SubsetError(f"{path} is no JSON ({error}): make or fetch it anew.") from error
    known = isinstance(split, dict) and split.keys() >= _KEYS
    if not known or not isinstance(split["image_ids"], list):
        raise SubsetError(f"{path} is no split file: make one with datasets/make_subset.py.")
    return split


def subset(records: Sequence[dict], split_file: str | os.PathLike) -> list[dict]:
    """Those of Detectron2's records whose images a split file has chosen, in their order.

    Raises:
        SubsetError: the records are not all those of the data set that the file divides, or see
            `read_split`.
    """
    chosen, _ = read_split(split_file, image_ids(records))
    return _only(records, chosen)


def image_ids(records: Iterable[dict]) -> list[ImageId]:
    """
    Raises:
        SubsetError: a record has none.
    """
    try:
        return [record["image_id"] for record in records]
    except KeyError as error:
        raise SubsetError("There are records without an image_id: give each one.") from error


def _only(records: Sequence[dict], ids: Sequence[ImageId]) -> list[dict]:
    wanted = set(ids)
    return [record for record in records if record["image_id"] in wanted]


def hide_labels(records: Iterable[dict]) -> list[dict]:
    """The records without what they say about the objects; the given ones stay as they are.

    An empty list of annotations would say that there is nothing on the image.
    """
    return [{k: v for k, v in record.items() if k not in _LABELS} for record in records]


def subset_name(base: str, percent: int, seed: int) -> str:
    """
    >>> subset_name("coco_2017_train", 5, 0)
    'coco_2017_train_5p_s0'
    """
    return f"{base}_{percent}p_s{seed}"


def register_subset(base: str, percent: int, seed: int) -> str:
    """Register a share of a data set, and the rest of it as `<name>_rest` without its labels.

    Nothing is read before one of them is used. Names already registered stay as they are. Both
    have the metadata of the data set, but for its JSON file, which lists other images.

    Args:
        base: name of a registered data set.
        percent: 1 to 100.
        seed: 0 or more.

    Returns:
        the name, as `subset_name` gives it.

    Raises:
        SubsetError: there is no such data set, or a number is out of range.
    """
    if base not in DatasetCatalog:
        raise SubsetError(f"There is no data set '{base}' to take a share of: register it before.")
    check_choice(percent, seed)
    name = subset_name(base, percent, seed)
    for part, labeled in ((name, True), (f"{name}_rest", False)):
        if part not in DatasetCatalog:
            load = partial(_load, part, base, percent, seed, labeled=labeled)
            DatasetCatalog.register(part, load)
            MetadataCatalog.get(part).set(subset_of=base)
            _copy_metadata(base, part)
    return name


def _copy_metadata(base: str, name: str) -> None:
    metadata = MetadataCatalog.get(name)
    known = {*_ONLY_OF_THE_BASE, *metadata.as_dict()}
    metadata.set(**{k: v for k, v in MetadataCatalog.get(base).as_dict().items() if k not in known})


def _load(name: str, base: str, percent: int, seed: int, *, labeled: bool) -> list[dict]:
    records = read_dataset(base)
    _copy_metadata(base, name)  # some data sets tell their classes only when they are read
    chosen, rest = divide(image_ids(records), percent, seed)
    if labeled:
        return _only(records, chosen)
    if not rest:
        raise SubsetError(
            f"The data set '{name}' has no images, as {percent} % are all of {base}: leave it out."
        )
    return hide_labels(_only(records, rest))
