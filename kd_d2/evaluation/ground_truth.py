"""The ground truth of a registered data set, as the metrics of crowds want it."""

import json
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["ImageTruth", "read_ground_truth"]


class ImageTruth(NamedTuple):
    """The labels of an image with G objects and ignore regions.

    Attributes:
        size: width and height in pixels.
        boxes: (G, 4) x, y, width, height in pixels.
        classes: (G,) as the detector numbers them.
        ignored: (G,) bool, which are ignore regions.
        unfindable: how many objects of class 0 have no area; they are not in ``boxes``.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    unfindable: int = 0


def read_ground_truth(name: str) -> dict[int | str, ImageTruth] | None:
    """The labels of a data set, by the images' ids and in their order.

    They are read from the JSON file, since a loader may leave out what only training cannot use.
    Boxes that are marked ``iscrowd`` are ignore regions.

    Returns:
        None where the data set has no labels.
    """
    json_file = MetadataCatalog.get(name).get("json_file")
    return _of_records(name) if json_file is None else _of_json(name, json_file)


def _of_json(name: str, json_file: str) -> dict | None:
    with open(PathManager.get_local_path(json_file)) as f:
        content = json.load(f)
    if "annotations" not in content:
        return None
    classes = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    if classes is None:  # nobody has loaded it; these are the numbers that Detectron2 will give
        classes = {k: i for i, k in enumerate(sorted(x["id"] for x in content["categories"]))}
    labels = {image["id"]: [] for image in content["images"]}
    for label in content["annotations"]:
        labels[label["image_id"]].append(
            (label["bbox"], classes[label["category_id"]], label.get("iscrowd", 0))
        )
    return {
        image["id"]: _truth(image, labels[image["id"]], image.get("persons_without_area", 0))
        for image in content["images"]
    }


def _of_records(name: str) -> dict | None:
    truths = {}
    for record in DatasetCatalog.get(name):
        if "annotations" not in record:
            return None
        labels = [
            (
                BoxMode.convert(list(label["bbox"]), label["bbox_mode"], BoxMode.XYWH_ABS),
                label["category_id"],
                label.get("iscrowd", 0),
            )
            for label in record["annotations"]
        ]
        truths[record["image_id"]] = _truth(record, labels)
    return truths


def _truth(image: dict, labels: list[tuple], unfindable: int = 0) -> ImageTruth:
    boxes, classes, ignored = zip(*labels) if labels else ((), (), ())
    return ImageTruth(
        (image["width"], image["height"]),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(classes, dtype=int),
        np.array(ignored, dtype=bool),
        unfindable,
    )
