"""Exported pseudo labels as a data set: ``DATASETS.TRAIN ("pseudo_labels:RUN/export",)``."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
            ``provenance.json``, which says where the images are, and whether ignore boxes are among
            the pseudo boxes.

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
    read = _read_mixed if content.get("export", {}).get("ignore") == "inline" else _read
    ignored = sorted(path.glob("ignore*.json"))
    DatasetCatalog.register(name, partial(_load, name, files, ignored, read))
    MetadataCatalog.get(name).set(
        image_root=root,
        dropped_files=sorted(path.glob("dropped*.json")),
        generated=True,
        only_for_training=True,
    )


def _no_labels(folder: str | Path) -> str:
    return (
        f"{folder} holds no exported pseudo labels (pseudo.json and {SIDE_CAR}): give the folder "
        "that the stage export of tools/pseudo_label.py has written."
    )


def _load(
    name: str, files: list[Path], ignored: list[Path], read: Callable[[str, Path], list[dict]]
) -> list[dict]:
    records = [x for file in files for x in read(name, file)]
    if not records:
        raise ExportedLabelsError(
            f"{files[0].parent} has labels of no image: lower the thresholds (report.html says how "
            "many detections there are), or take a teacher that finds something."
        )
    by_image = {record["image_id"]: record for record in records}
    for file in ignored:
        _add_ignored(name, by_image, json.loads(file.read_text())["annotations"])
    return records


def _read(name: str, file: Path) -> list[dict]:
    root = MetadataCatalog.get(name).image_root
    return load_coco_json(str(file), root, dataset_name=name, extra_annotation_keys=_KEYS)


def _read_mixed(name: str, file: Path) -> list[dict]:
    """Of a file that has ignore boxes among its annotations, which Detectron2 refuses."""
    content = json.loads(file.read_text())
    parts: tuple[list, list] = [], []
    for annotation in content["annotations"]:
        parts[annotation["ignore"]].append(annotation)
    objects, uncertain = parts
    with tempfile.TemporaryDirectory() as folder:
        without = Path(folder, file.name)
        without.write_text(json.dumps(content | {"annotations": objects}))
        records = _read(name, without)
    _add_ignored(name, {record["image_id"]: record for record in records}, uncertain)
    return records


def _add_ignored(name: str, by_image: Mapping[int, dict], annotations: Sequence[dict]) -> None:
    contiguous = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {})
    for x in annotations:
        by_image[x["image_id"]]["annotations"].append(
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


def dropped_images(name: str) -> list[dict]:
    """Records of the images that the filter has dropped; all their boxes are to be ignored.

    They are none of the data set: these labels are too uncertain to be learned. But other labels of
    the same images may lack classes that the teachers have looked for.

    Args:
        name: of a data set of exported labels that has been read.
    """
    return [x for file in MetadataCatalog.get(name).dropped_files for x in _read_mixed(name, file)]


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
