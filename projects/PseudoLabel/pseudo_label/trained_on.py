"""Exported pseudo labels as a data set: ``DATASETS.TRAIN ("pseudo_labels:RUN/export",)``."""

import json
import os
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from kd_d2.data.prefixes import add_prefix

from .publish import SIDE_CAR, read_side_car

PREFIX = "pseudo_labels"
_KEYS = ["score", "weight", "box_agreement", "teacher"]


class ExportedLabelsError(ValueError):
    """A folder that trainings cannot read; the message says what to do."""


def register_exported(name: str, folder: str) -> None:
    """Registers what the stage export has written; nothing is read before it is used.

    Args:
        name: of the data set.
        folder: with ``pseudo*.json``, ``ignore*.json`` if ignore boxes are to be trained with, and
            ``provenance.json``, which says where the images are.

    Raises:
        ExportedLabelsError: it is no such folder, or the images are no longer there.
    """
    content, path = read_side_car(Path(folder)), Path(folder)
    files = sorted(path.glob("pseudo*.json"))
    if content is None or not files:
        raise ExportedLabelsError(_no_labels(folder))
    root = content["images"]["root"]
    if not os.path.isdir(root):
        raise ExportedLabelsError(
            f"The images of {folder} lay in {root}, which is not there: move them back, or put a "
            "link there."
        )
    DatasetCatalog.register(name, partial(_load, name, files, sorted(path.glob("ignore*.json"))))
    MetadataCatalog.get(name).set(image_root=root, generated=True, only_for_training=True)


def _no_labels(folder: str | Path) -> str:
    return (
        f"{folder} holds no exported pseudo labels (pseudo.json and {SIDE_CAR}): give the folder "
        "that the stage export of tools/pseudo_label.py has written."
    )


def _load(name: str, files: list[Path], ignored: list[Path]) -> list[dict]:
    root = MetadataCatalog.get(name).image_root
    read = partial(load_coco_json, image_root=root, extra_annotation_keys=_KEYS)
    records = [x for file in files for x in read(str(file), dataset_name=name)]
    if not records:
        raise ExportedLabelsError(
            f"{files[0].parent} has labels of no image: lower the thresholds (report.html says how "
            "many detections there are), or take a teacher that finds something."
        )
    by_image = {record["image_id"]: record["annotations"] for record in records}
    contiguous = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {})
    for file in ignored:
        for x in json.loads(file.read_text())["annotations"]:  # Detectron2 refuses "ignore"
            by_image[x["image_id"]].append(
                {
                    "bbox": x["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": contiguous.get(x["category_id"], x["category_id"]),
                    "score": x["score"],
                    "ignore": 1,
                    # a crowd for those who do not look at "ignore": Detectron2 leaves crowds out
                    "iscrowd": 1,
                }
            )
    return records


def exported_classes(folder: str | Path) -> list[str]:
    """Names of the categories of exported labels, in the order of their ids.

    Raises:
        ExportedLabelsError: there are none.
    """
    first = min(Path(folder).glob("pseudo*.json"), default=None)
    if first is None:
        raise ExportedLabelsError(_no_labels(folder))
    categories = json.loads(first.read_text())["categories"]
    return [x["name"] for x in sorted(categories, key=lambda x: x["id"])]


add_prefix(PREFIX, register_exported)
