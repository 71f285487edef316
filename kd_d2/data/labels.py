"""Checks that the records of a data set have the labels that a config asks for."""

from collections.abc import Iterable

from detectron2.config import CfgNode

from kd_d2.config.rules import ConfigError
from kd_d2.config.student import student_config

__all__ = [
    "check_reliable_boxes",
    "check_test_masks",
    "check_training_labels",
    "has_mask_head",
    "is_usable",
]

# Detectors that have a mask head where MODEL.MASK_ON is True; others do not look at masks
_WITH_MASK_HEAD = ("GeneralizedRCNN", "PanopticFPN")


def is_usable(record: dict) -> bool:
    """Whether a record has an object to train on; Detectron2's mapper leaves crowds out."""
    return any(not label.get("iscrowd", 0) for label in record.get("annotations", ()))


def check_training_labels(cfg: CfgNode, records: Iterable[dict]) -> None:
    """Check records that Detectron2's own mapper is to prepare for training.

    Raises:
        ValueError: labels are absent, or masks are absent or of the wrong kind.
    """
    names, masks = tuple(cfg.DATASETS.TRAIN), has_mask_head(cfg)
    polygons = cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    for record in records:
        if "annotations" not in record and "sem_seg_file_name" not in record:
            raise ValueError(
                f"DATASETS.TRAIN {names} has images without labels, e.g. "
                f"{record.get('file_name')}: name a data set with annotations."
            )
        for segmentation in _segmentations(record):
            if segmentation is None and masks:
                raise _no_masks(f"DATASETS.TRAIN {names}", record)
            if isinstance(segmentation, dict) and polygons:
                raise ValueError(
                    f"DATASETS.TRAIN {names} has masks in run-length encoding, "
                    f"e.g. of {record.get('file_name')}, while INPUT.MASK_FORMAT is polygon: set "
                    "INPUT.MASK_FORMAT bitmask."
                )


def check_test_masks(name: str, records: Iterable[dict]) -> None:
    """Check the records of a test set whose masks COCO's evaluation is to compare with detections.

    Raises:
        ValueError: there are no masks.
    """
    for record in records:
        if None in _segmentations(record):
            raise _no_masks(f"The test set '{name}'", record)


def check_reliable_boxes(cfg: CfgNode, records: Iterable[dict]) -> None:
    """Check that MODEL.LABEL_WEIGHTS.BOX_LOSS "reliable" leaves boxes to train on.

    Raises:
        ConfigError: of no box of a detector it is known whether it is reliable.
    """
    if cfg.MODEL.LABEL_WEIGHTS.BOX_LOSS != "reliable":
        return
    labels = (x for record in records for x in record.get("annotations", ()))
    made = [x for x in labels if "score" in x and not x.get("ignore", 0)]
    if made and not any("box_agreement" in x for x in made):
        raise ConfigError(
            "MODEL.LABEL_WEIGHTS.BOX_LOSS is reliable, but no pseudo box of DATASETS.TRAIN "
            f"{tuple(cfg.DATASETS.TRAIN)} has a box_agreement, so that none would train boxes: "
            "generate the labels with mirrored images (--flip), or set BOX_LOSS all."
        )


def has_mask_head(cfg: CfgNode) -> bool:
    """Whether the student learns and predicts masks."""
    return cfg.MODEL.MASK_ON and student_config(cfg).MODEL.META_ARCHITECTURE in _WITH_MASK_HEAD


def _segmentations(record: dict) -> list:
    labels = record.get("annotations", ())
    return [x.get("segmentation") for x in labels if not x.get("iscrowd", 0)]


def _no_masks(where: str, record: dict) -> ValueError:
    return ValueError(
        f"{where} has objects without a segmentation, e.g. in {record.get('file_name')}: add it, "
        "or set MODEL.MASK_ON False for a detector of boxes."
    )
