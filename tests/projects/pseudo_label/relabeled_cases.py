"""Labels of people, pseudo labels of the same images, and views of both."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cases import Case, make_run
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tiny_models import tiny_cfg

from kd_d2.data.requirements import check_datasets
from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.shards import UNCERTAIN, USED

STUDENT = ["car", "helmet"]
HELMET, CAR, DOG = range(3)  # as the teachers number them


def export_of_five(folder: Path) -> Path:
    """Five images with ids from 100 on; the third is dropped, as it was too uncertain."""
    return export_of(
        folder,
        [USED, USED, UNCERTAIN, USED, USED],
        kept=[
            (0, 0, 0, 10, 7, 0.75, HELMET, 0, 2, 0.8125),  # 0.7 of the labelled car
            (0, 0, 0, 10, 7.1, 0.9, HELMET),  # 0.71 of it
            (0, 40, 0, 50, 10, 0.8, CAR),  # people have said what is a car
            (0, 20, 20, 40, 40, 0.8, HELMET),  # the labelled dog
            (1, 5, 5, 25, 25, 0.9, HELMET),
            (3, 5, 5, 25, 25, 0.6, CAR),
            (3, 50, 5, 70, 25, 0.8, DOG),
        ],
        ignored=[
            (0, 0, 0, 10, 10, 0.45, HELMET),
            (0, 60, 0, 70, 10, 0.45, CAR),
            (2, 30, 30, 50, 50, 0.45, HELMET),
            (2, 60, 0, 70, 10, 0.4, CAR),
        ],
    )


def export_of(folder: Path, status, kept, ignored=()) -> Path:
    """The labels that a run with these boxes has exported; see ``Case``."""
    case = Case(status, kept, list(ignored), categories=("helmet", "car", "dog"))
    run = make_run(folder, case)
    export_run(run, ExportSettings(weight_mode="score"))
    return run.folder / "export"


def box(category, *corners, **more):
    return {"bbox": list(corners), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category} | more


def image(folder, number, *annotations, id=None):
    file = folder / "images" / f"part{number % 2}/image_{number}.png"
    id = 100 + number if id is None else id
    sizes = {"height": 60, "width": 80}
    return {"file_name": str(file), "image_id": id, **sizes, "annotations": list(annotations)}


def labelled_images(folder: Path) -> list[dict]:
    """The first three images; people have labelled dogs and cars."""
    segmentation = [[0, 0, 10, 0, 10, 10]]
    return [
        image(folder, 0, box(1, 0, 0, 10, 10, segmentation=segmentation), box(0, 20, 20, 40, 40)),
        image(folder, 1, box(1, 30, 30, 70, 50, iscrowd=1)),
        image(folder, 2, box(1, 1, 1, 9, 9)),
    ]


@contextmanager
def registering() -> Iterator[Callable]:
    """Gives what registers records, or a function that reads them, for as long as it is open."""
    names = []

    def register(name, records, classes=("dog", "car")):
        DatasetCatalog.register(name, records if callable(records) else lambda: records)
        names.append(name)
        if classes:
            MetadataCatalog.get(name).thing_classes = list(classes)
        return name

    try:
        yield register
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)


def named(tmp_path: Path, **view) -> str:
    """Writes a view's file and lets a config name it; the name."""
    file = tmp_path / f"view_{len(list(tmp_path.glob('view_*')))}.json"
    file.write_text(json.dumps({"classes": STUDENT, "drop": ["dog"]} | view))
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = (f"relabeled:{file}",)
    check_datasets(cfg, ("TRAIN",))
    return cfg.DATASETS.TRAIN[0]


def read(tmp_path: Path, **view) -> list[dict]:
    return DatasetCatalog.get(named(tmp_path, **view))
