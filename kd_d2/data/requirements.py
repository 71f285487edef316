"""Checks, before anything heavy starts, that a config's data sets are known, present and fit."""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from kd_d2.config.names import detector_node

from .labels import check_test_masks, has_mask_head
from .prefixes import register_by_prefix
from .reading import read_dataset

__all__ = [
    "check_available",
    "check_datasets",
    "check_num_classes",
    "class_names",
    "read_class_names",
]

_checked: dict[tuple[str, bool], Callable] = {}  # test sets, as they were registered then


def check_datasets(cfg: CfgNode, keys: Iterable[str] = ("TRAIN", "TEST")) -> None:
    """Check that the data sets of a config can be loaded.

    Test sets are read, so that their faults do not show when the training is over, and so that
    those that are registered without their classes tell them (see `check_num_classes`). Training
    sets are read next anyway.

    Args:
        cfg: a finished config.
        keys: which of cfg.DATASETS.* are needed, the one that must not be empty first: ("TEST",)
            where nothing is trained.

    Raises:
        ValueError: there is none, a name is not registered, or a test set cannot be read, lacks the
            masks that are evaluated or is for training only.
        FileNotFoundError: annotations or images of a COCO-style data set are not where they belong.
    """
    keys = list(keys)
    if not cfg.DATASETS[keys[0]]:  # a training without a test set is fine
        raise ValueError(
            f"DATASETS.{keys[0]} is empty: give a config that names its data sets (--config-file)."
        )
    check_available({name: f"DATASETS.{key}" for key in keys for name in cfg.DATASETS[key]})
    for name in cfg.DATASETS.TEST if "TEST" in keys else ():
        _check_test_set(name, has_mask_head(cfg))


def check_available(needed: Mapping[str, str]) -> None:
    """Check that data sets are registered, or can be by their prefix, and their files there.

    Args:
        needed: name -> where it is named, for people.

    Raises:
        ValueError, FileNotFoundError: see `check_datasets`.
    """
    register_by_prefix(needed)
    for name, where in needed.items():
        if name not in DatasetCatalog:
            raise ValueError(
                f"{where} names the data set '{name}', which is not registered; "
                f"{_alternatives(name)}."
            )
    missing = dict.fromkeys(text for name in needed if (text := _missing_files(name)))
    if missing:
        root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
        raise FileNotFoundError(
            f"{'; '.join(missing)}: put the files there (see datasets/README.md), or set "
            f"DETECTRON2_DATASETS (now {root}) to the folder that has them."
        )


def _check_test_set(name: str, has_masks: bool) -> None:
    """Read a test set, once in a process."""
    metadata, load = MetadataCatalog.get(name), DatasetCatalog[name]
    if metadata.get("only_for_training", False):
        raise ValueError(
            f"DATASETS.TEST names '{name}', in which labels are missing or made by a detector: "
            "name a data set that people have labelled."
        )
    if metadata.get("generated", False) or _checked.get((name, has_masks)) is load:
        return
    records = read_dataset(name)
    if has_masks and metadata.get("evaluator_type") == "coco" and isinstance(records, list):
        check_test_masks(name, records)
    _checked[name, has_masks] = load


def _alternatives(name: str) -> str:
    known = sorted(DatasetCatalog.keys())
    nearest = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if nearest:
        return f"did you mean {' or '.join(nearest)}"
    whole = [name for name in known if not MetadataCatalog.get(name).get("subset_of")]
    return f"known are {', '.join(whole)}"


def _missing_files(name: str) -> str | None:
    metadata = MetadataCatalog.get(name)
    if metadata.get("subset_of"):
        return _missing_files(metadata.subset_of)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    # Data sets without a JSON file are loaded in their own way and say themselves what they lack.
    if metadata.get("generated", False) or not json_file or not image_root:
        return None
    absent = []
    if not PathManager.isfile(json_file):
        absent.append(json_file)
    if not PathManager.isdir(image_root):
        absent.append(f"{str(image_root).rstrip('/')}/")
    if not absent:
        return None
    return (
        f"{name} needs {json_file} and {str(image_root).rstrip('/')}/, but there is no "
        f"{' and no '.join(absent)}"
    )


def class_names(dataset: str) -> list[str] | None:
    """The names of a data set's classes; None where they are not known, or not yet."""
    if dataset not in DatasetCatalog:  # `get` would create its metadata
        return None
    classes = MetadataCatalog.get(dataset).get("thing_classes")
    return None if classes is None else list(classes)


def read_class_names(dataset: str) -> list[str] | None:
    """As `class_names`; a data set that tells them only when it is read, is read.

    Raises:
        ValueError, OSError: it cannot be.
    """
    names = class_names(dataset)
    if names is None:
        read_dataset(dataset)  # files in COCO's format, for one
        names = class_names(dataset)
    return names


def check_num_classes(cfg: CfgNode, student_meta_arch: str) -> None:
    """Check that the student has an output for each class of its data sets, and in one order.

    Only data sets whose classes are known are checked (COCO's and the built-in ones from the start,
    others when they have been read), and the number only of detectors that have one key for it.

    Args:
        cfg: a finished config.
        student_meta_arch: name of the student's META_ARCHITECTURE.

    Raises:
        ValueError: the number of classes differs, or equally many have other names or another order
            than those of the training data.
    """
    node = detector_node(student_meta_arch)
    value = cfg.MODEL.get(node, {}).get("NUM_CLASSES")
    key = f"MODEL.{node}.NUM_CLASSES"
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    known = {name: classes for name in names if (classes := class_names(name)) is not None}
    for name, classes in known.items():
        if value is not None and len(classes) != value:
            raise ValueError(
                f"The data set '{name}' has {len(classes)} class{'es' * (len(classes) != 1)} but "
                f"{key} is {value}: "
                f"set {key} to {len(classes)}."
            )
    trained = next((name for name in cfg.DATASETS.TRAIN if name in known), None)
    for name, classes in known.items() if trained else ():
        if problem := _other_classes(classes, known[trained]):
            raise ValueError(
                f"The data set '{name}' {problem} than '{trained}', with which the detector is "
                "trained: give both the same class names in the same order."
            )


def _other_classes(given: list[str], wanted: list[str]) -> str:
    """How equally many classes differ; "" if they do not.

    >>> _other_classes(["cat", "dog"], ["dog", "cat"])
    "has the classes in another order (class 0 is 'cat' instead of 'dog')"
    >>> _other_classes(["cat", "cow"], ["cat", "dog"])
    "has other classes (class 1 is 'cow' instead of 'dog')"
    """
    if given == wanted or len(given) != len(wanted):
        return ""
    what = "the classes in another order" if set(given) == set(wanted) else "other classes"
    i = next(i for i, pair in enumerate(zip(given, wanted, strict=True)) if pair[0] != pair[1])
    return f"has {what} (class {i} is '{given[i]}' instead of '{wanted[i]}')"
