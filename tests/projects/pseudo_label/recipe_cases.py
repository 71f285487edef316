"""Configs of trainings with pseudo labels whose teachers are untrained."""

from contextlib import contextmanager
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_models import write_untrained

from kd_d2.engine import load_config

ROOT = Path(__file__).resolve().parents[3]
LABELLED = ({"file_name": "a.png", "image_id": 1, "annotations": [{"category_id": 0}]},)
TEACHER = """
_BASE_: {base}
MODEL:
  GFL:
    NUM_CLASSES: {num_classes}
DATASETS:
  TRAIN: [{train}]
  TEST: []
"""


def write_teacher(folder: Path, name: str, train: str = "shapes_train", num_classes: int = 6):
    """An untrained GFL of some data set's classes; how the recipe calls it."""
    base = ROOT / "configs" / "quickstart" / "plain_gfl.yaml"
    config = folder / f"{name}_config.yaml"
    config.write_text(TEACHER.format(base=base, train=f"'{train}'", num_classes=num_classes))
    cfg = load_config(str(config))
    cfg.MODEL.DEVICE = "cpu"
    return f"{name}={config},{write_untrained(cfg, folder, name)[1]}"


def recipe(folder: Path, *overrides, teachers=None):
    """The quickstart's recipe with a teacher of ``folder``."""
    if teachers is None:
        teachers = [write_teacher(folder, "big")]
    config = ROOT / "configs" / "quickstart" / "pseudo_label_gfl.yaml"
    values = ["PSEUDO_LABEL.TEACHERS", repr(teachers), "OUTPUT_DIR", str(folder / "out")]
    return load_config(str(config), [*values, *map(str, overrides)])


@contextmanager
def data_set(name: str, classes, records=LABELLED):
    """Registered for a while."""
    DatasetCatalog.register(name, lambda: list(records))
    MetadataCatalog.get(name).thing_classes = list(classes)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def class_map(folder: Path, name: str, classes: dict) -> str:
    path = folder / f"{name}_map.yaml"
    path.write_text(yaml.safe_dump({"classes": classes}))
    return f"{name}={path}"
