"""CrowdHuman: full bodies of persons in crowds, with regions to ignore (arXiv 1805.00123).

Loads what ``datasets/prepare_crowdhuman.py`` has written.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

__all__ = ["SPLITS", "load_crowdhuman", "register_crowdhuman", "split_files", "why_untrainable"]

SPLITS = ("train", "val")


def split_files(root: str | os.PathLike, split: str) -> tuple[Path, Path, Path]:
    """Where a split lies under the data folder: as downloaded, as converted, and its images."""
    folder = Path(root) / "crowdhuman"
    return (
        folder / f"annotation_{split}.odgt",
        folder / "annotations" / f"{split}.json",
        folder / "Images",
    )


def why_untrainable(bbox: Sequence[float], width: float, height: float) -> str | None:
    """Why a box is left out of training, though evaluation knows it; None for one that is not.

    Args:
        bbox: x, y, width, height in pixels.
        width, height: of the image.

    >>> why_untrainable([-30, 5, 40, 80], 200, 100)
    >>> why_untrainable([-30, 5, 30, 80], 200, 100)
    'outside the image'
    >>> why_untrainable([30, 5, 0.5, 80], 200, 100)
    'thinner than a pixel'
    """
    x, y, w, h = bbox
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return "outside the image"
    if w < 1 or h < 1:
        return "thinner than a pixel"
    return None


def load_crowdhuman(json_file: str, image_root: str, name: str) -> list[dict]:
    """The records of a split, without the boxes that `why_untrainable` names.

    Full boxes reach beyond the image where persons do; mappers clip them. Each annotation also has
    the `visible_bbox`, x, y, w, h as well. Ignore regions have `iscrowd` 1.
    """
    records = load_coco_json(json_file, image_root, name, extra_annotation_keys=["visible_bbox"])
    for record in records:
        size = record["width"], record["height"]
        record["annotations"] = [
            label for label in record["annotations"] if not why_untrainable(label["bbox"], *size)
        ]
    return records


def register_crowdhuman(root: str | os.PathLike, prefix: str = "crowdhuman") -> None:
    """Register `<prefix>_train` and `<prefix>_val`; those already registered stay as they are.

    Args:
        root: data folder; nothing is read before a split is used.
        prefix: of the registered names.
    """
    for split in SPLITS:
        name = f"{prefix}_{split}"
        if name in DatasetCatalog:
            continue
        _, json_file, image_root = map(str, split_files(root, split))
        DatasetCatalog.register(name, partial(load_crowdhuman, json_file, image_root, name))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=image_root,
            evaluator_type="crowdhuman",
            thing_classes=["person"],
            thing_dataset_id_to_contiguous_id={1: 0},
        )
