"""COCO's unlabelled images of 2017, for teachers to label."""

import os
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .subsets import hide_labels

__all__ = ["load_coco_unlabeled", "register_coco_unlabeled"]

_LABELED = "coco_2017_train"


def load_coco_unlabeled(json_file: str, image_root: str) -> list[dict]:
    """The records of a list of images in COCO's format, without labels.

    The list needs no annotations and, unlike others, no categories.
    """
    return hide_labels(load_coco_json(json_file, image_root))


def register_coco_unlabeled(root: str | os.PathLike, name: str = "coco_2017_unlabeled") -> None:
    """Register the unlabelled images, with the classes of `coco_2017_train`.

    A name already registered stays as it is.

    Args:
        root: data folder; nothing is read before the data set is used.
        name: to register.
    """
    if name in DatasetCatalog:
        return
    json_file = os.path.join(root, "coco", "annotations", "image_info_unlabeled2017.json")
    image_root = os.path.join(root, "coco", "unlabeled2017")
    DatasetCatalog.register(name, partial(load_coco_unlabeled, json_file, image_root))
    labeled = MetadataCatalog.get(_LABELED)
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=labeled.thing_classes,
        thing_colors=labeled.thing_colors,
        thing_dataset_id_to_contiguous_id=labeled.thing_dataset_id_to_contiguous_id,
        unlabeled=True,
    )
