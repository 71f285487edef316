"""Registers the built-in data sets under DETECTRON2_DATASETS, by default ./datasets."""

import itertools
import os
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import NativePathHandler

from .coco_unlabeled import register_coco_unlabeled
from .crowdhuman import register_crowdhuman
from .shapes import SPLITS, ensure_split, is_labeled, split_folder
from .shapes_render import CLASSES
from .subsets import PERCENTAGES, SEEDS, hide_labels, register_subset

__all__ = ["register_shapes"]


class _GeneratingPathHandler(NativePathHandler):
    """Generates a split when Detectron2 asks for its JSON file before the data set was loaded.

    COCOEvaluator, for one, opens `MetadataCatalog.get(name).json_file` without loading anything.
    A path manager has one handler of local files: this one is for all splits there are.
    """

    splits: dict[str, dict] = {}  # path of the JSON file -> arguments of ensure_split

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        if path in self.splits:
            ensure_split(**self.splits[path])
        return super()._get_local_path(path, force=force, **kwargs)


def _load(name: str, arguments: dict) -> list[dict]:
    folder = ensure_split(**arguments)
    records = load_coco_json(str(folder / "annotations.json"), str(folder / "images"), name)
    return records if is_labeled(arguments["split"]) else hide_labels(records)


def register_shapes(
    root: str | os.PathLike, sizes: dict[str, int] | None = None, prefix: str = "shapes"
) -> None:
    """Register `<prefix>_<split>` for each split; those already registered stay as they are.

    Args:
        root: data folder; nothing is written to it before a split is used.
        sizes: split name -> number of images; default `SPLITS`.
        prefix: of the registered names and of the folder.
    """
    for split, num_images in (sizes or SPLITS).items():
        name = f"{prefix}_{split}"
        if name in DatasetCatalog:
            continue
        arguments = {"root": root, "split": split, "num_images": num_images, "prefix": prefix}
        folder = split_folder(root, split, prefix)
        json_file = str(folder / "annotations.json")
        _GeneratingPathHandler.splits[json_file] = arguments
        DatasetCatalog.register(name, partial(_load, name, arguments))
        MetadataCatalog.get(name).set(
            json_file=json_file,
            image_root=str(folder / "images"),
            evaluator_type="coco",
            thing_classes=list(CLASSES),
            thing_dataset_id_to_contiguous_id={k + 1: k for k in range(len(CLASSES))},
            generated=True,
        )


PathManager.register_handler(_GeneratingPathHandler(), allow_override=True)
_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_shapes(_ROOT)
register_crowdhuman(_ROOT)
register_coco_unlabeled(_ROOT)
_DIVIDED = ("shapes_train", "shapes_shifted_train", "coco_2017_train")
for _choice in itertools.product(_DIVIDED, PERCENTAGES, SEEDS):
    register_subset(*_choice)
