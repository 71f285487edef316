"""The images to look at: of a registered data set, files, folders, or a COCO annotation file."""

import json
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json

from kd_d2.data.mappers import RobustDatasetMapper, build_annotated_test_mapper

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class TestInputs:
    """Maps records as at test time; those with annotations keep them.

    Raises (from a call):
        ImageError: an image cannot be used.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    def __init__(self, cfg: CfgNode):
        self._labelled = RobustDatasetMapper(build_annotated_test_mapper(cfg))
        self._plain = RobustDatasetMapper(DatasetMapper(cfg, is_train=False))

    def __call__(self, record: dict) -> dict:
        return (self._labelled if "annotations" in record else self._plain)(record)


def spread(records: list[dict], count: int) -> list[dict]:
    """At most ``count`` records, evenly over the list: nobody has picked them for their looks."""
    positions = np.linspace(0, len(records) - 1, min(count, len(records)))
    return [records[round(i)] for i in positions]


def image_records(paths: list[str]) -> list[dict]:
    """Records without labels, of files and of all images in folders (not in their subfolders).

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a folder without images.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(
                    f"The folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)})."
                )
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"There is no image or folder {path} (--images).")
    return [{"file_name": str(file), "image_id": i} for i, file in enumerate(files)]


def annotated_records(
    json_file: str, folder: str, classes: list[str] | None, num_classes: int
) -> list[dict]:
    """Records of a COCO annotation file, with class ids as the model has them.

    Args:
        folder: of the images.
        classes: the model's class names; None where nobody knows them. The file's categories are
            then taken in the order of their ids.
        num_classes: of the model.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is no COCO annotation file, or has a class that the model lacks.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--annotations needs the folder of the images, not {folder}.")
    ids = _class_ids(json_file, classes, num_classes)
    try:
        records = load_coco_json(json_file, folder)
        for record in records:
            for label in record["annotations"]:
                label["category_id"] = ids[label["category_id"]]
    except (AssertionError, KeyError, TypeError) as error:
        raise _not_coco(json_file, error) from error
    return records


def _class_ids(json_file: str, classes: list[str] | None, num_classes: int) -> dict[int, int]:
    """COCO category id -> class id of the model."""
    if not Path(json_file).is_file():
        raise FileNotFoundError(f"There is no annotation file {json_file}.")
    try:
        content = json.loads(Path(json_file).read_text())
        categories = sorted(content["categories"], key=lambda c: c["id"])
        names = {c["id"]: c["name"] for c in categories}
        used = {x["category_id"] for x in content["annotations"]}
        if not content["images"]:
            raise ValueError("it names no images")
    except (ValueError, KeyError, TypeError) as error:
        raise _not_coco(json_file, error) from error
    if classes is not None:
        unknown = sorted({str(names[i]) for i in used & names.keys()} - set(classes))
        if unknown:
            raise ValueError(
                f"{json_file} has objects of classes that the model does not know "
                f"({', '.join(unknown[:5])}); it knows {', '.join(classes[:10])}"
                f"{', ...' if len(classes) > 10 else ''}."
            )
        return {i: classes.index(name) for i, name in names.items() if name in classes}
    if len(names) > num_classes:
        raise ValueError(f"{json_file} has {len(names)} classes, and the model {num_classes}.")
    return {i: k for k, i in enumerate(names)}


def _not_coco(json_file: str, error: Exception) -> ValueError:
    return ValueError(f"{json_file} is no COCO annotation file ({type(error).__name__}: {error}).")
