"""Whether the thresholds that are asked for can be had, before hours are spent on detections.

Symbols: C unified classes.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from .class_map import Unified
from .filters import FilterSettings, check_t_ignore
from .label_set import LabelSet, find_record
from .merge import COMMON_THRESHOLD
from .merge_settings import NEEDS_LABELS, MergeSettings
from .run_folder import ImageRecord
from .run_thresholds import check_labelled_images, labelled_classes
from .thresholds import LEAST_LABELS, read_thresholds


def check_thresholds(
    merge: MergeSettings,
    filter: FilterSettings,
    unified: Unified,
    teachers: Sequence[str],
    images: Iterable[ImageRecord],
) -> None:
    """
    Args:
        unified: the classes of the teachers, as ``merge`` maps them.
        teachers: their names.
        images: that will be labelled; only "per_class_fbeta" looks at them.

    Raises:
        ConfigError: the file of thresholds or the labels do not fit classes or images, or ignore
            boxes would begin above a threshold that a class has, or may get.
    """
    least = _least_thresholds(merge, unified, teachers, images)
    found = merge.threshold_mode in NEEDS_LABELS
    if len(teachers) > 1:
        least, found = np.full(len(unified.names), COMMON_THRESHOLD), False
    check_t_ignore(filter.t_ignore, least, unified.names, may=found)


def _least_thresholds(
    merge: MergeSettings,
    unified: Unified,
    teachers: Sequence[str],
    images: Iterable[ImageRecord],
) -> np.ndarray:
    """(C,) the least threshold that each class may get of any teacher."""
    names = unified.names
    if merge.threshold_mode == "file":
        table = read_thresholds(merge.threshold_file, unified.known_to(teachers)).values()
        return np.array([min(x[c] for x in table if c in x) for c in names])
    own = np.zeros(len(names), bool)
    if merge.threshold_mode == "per_class_count":
        own = labelled_classes(merge.labels, names)
    elif merge.threshold_mode == "per_class_fbeta":
        own = _num_labels(merge.labels, names, images) >= LEAST_LABELS
    return np.where(own, merge.limits[0], merge.threshold)


def _num_labels(
    labels: LabelSet, names: Sequence[str], images: Iterable[ImageRecord]
) -> np.ndarray:
    """(C,) labelled boxes in the images.

    Raises:
        ConfigError: there are too few.
    """
    labelled = labels.by_file()
    found = enumerate(find_record(labelled, image) for image in images)
    records = [(number, record) for number, record in found if record is not None]
    boxes = labels.boxes(records, names)
    counts = np.bincount(boxes.category[~boxes.crowd], minlength=len(names))
    check_labelled_images(labels.name, len(records), counts)
    return counts
