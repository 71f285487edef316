"""Reads registered data sets, and says in one sentence why one cannot be read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .dataset_shares import drawn_sets
from .labels import check_training_labels, is_usable

__all__ = ["explained_training_data", "read_dataset"]

# What Detectron2's and pycocotools' loaders stumble over
_FAULTS = (AssertionError, AttributeError, LookupError, TypeError, ValueError)


def read_dataset(name: str):
    """What is registered under a name, a list of records as a rule.

    Raises:
        ValueError: it cannot be read, or is empty; names the data set and its file.
    """
    try:
        records = DatasetCatalog.get(name)
    except _FAULTS as error:
        metadata = MetadataCatalog.get(name)
        if metadata.get("generated", False) or metadata.get("subset_of"):
            raise  # its errors are sentences of ours
        file = metadata.get("json_file")
        if not file:
            raise ValueError(
                f"The data set '{name}' cannot be read ({type(error).__name__}: {error}): mend the "
                "function that is registered under this name."
            ) from error
        raise ValueError(
            f"The data set '{name}' cannot be read: {file} "
            f"{_what_is_wrong(file, error, metadata.get('unlabeled', False))}."
        ) from error
    if isinstance(records, list) and not records:
        file = MetadataCatalog.get(name).get("json_file")
        raise ValueError(
            f"The data set '{name}' has no images: give a whole one"
            f"{f', or list its images in {file}' if file else ''}."
        )
    return records


def _what_is_wrong(file: str, error: Exception, unlabeled: bool) -> str:
    """What is wrong with a JSON file at which a loader failed, and what to do."""
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return f"is no JSON ({error}); it may be cut off: write or fetch it anew"
    with PathManager.open(file) as f:
        content = json.load(f)
    if not isinstance(content, dict):
        return (
            f"holds a {type(content).__name__}: it must be a dict of images, annotations and "
            "categories, as in COCO's files"
        )
    needed = ("images",) if unlabeled else ("images", "categories")
    absent = [key for key in needed if not content.get(key)]
    if absent:
        return f"lists no {' and no '.join(absent)}: add them as COCO's files have them"
    return f"is not as COCO's files are ({_told(error)}): mend it"


def _told(error: Exception) -> str:
    text = str(error.args[0]) if error.args else ""
    if " " in text:  # a sentence, and not the mere key of a KeyError
        return text.rstrip(". ")
    return f"there is no {text!r}" if isinstance(error, KeyError) else type(error).__name__


@contextmanager
def explained_training_data(cfg: CfgNode) -> Iterator[None]:
    """While open, failures to load DATASETS.TRAIN become sentences.

    Detectron2 reads the sets under one roof and does not say which of them it was. So they are
    read once more, one by one, when it has failed.

    Raises:
        ValueError: see above; the original error is its cause.
    """
    try:
        yield
    except _FAULTS as error:
        names, shares = tuple(cfg.DATASETS.TRAIN), cfg.DATALOADER.DATASET_SHARES
        drawn = drawn_sets(cfg)
        empty = []
        for name in drawn:
            records = read_dataset(name)
            if not isinstance(records, list):
                raise
            check_training_labels(cfg, records)
            if not any(map(is_usable, records)):
                empty.append(name)
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and (empty if shares else empty == drawn):
            unshare = ", or give it no share (DATALOADER.DATASET_SHARES)" if shares else ""
            raise ValueError(
                f"DATASETS.TRAIN {tuple(empty)} has no image with an object (crowds do not count), "
                f"so that nothing is left to train on: label some{unshare}, or set "
                "DATALOADER.FILTER_EMPTY_ANNOTATIONS False."
            ) from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"DATASETS.TRAIN {names} cannot be used ({_told(error)}).") from error
