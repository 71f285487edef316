"""Whether thresholds can be had, asked before anything is generated."""

import json

import numpy as np
import pytest
from detectron2.structures import BoxMode

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.check_thresholds import check_thresholds
from kd_d2.projects.pseudo_label.class_map import unify
from kd_d2.projects.pseudo_label.filters import FilterSettings
from kd_d2.projects.pseudo_label.label_set import LabelSet
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.run_folder import ImageRecord
from kd_d2.projects.pseudo_label.thresholds import LEAST_LABELS

CLASSES = ("car", "dog")
IMAGES = [ImageRecord(f"/data/{k}.png", f"{k}.png", k, "made up") for k in range(3)]
ONE = unify([dict(enumerate(CLASSES))])
TWO = unify([dict(enumerate(CLASSES)), {0: "dog"}])


def check(t_ignore=None, unified=ONE, images=IMAGES, **merge):
    names = [f"teacher {k}" for k in range(len(unified.lookup))]
    settings = MergeSettings(**merge), FilterSettings(t_ignore=t_ignore)
    check_thresholds(*settings, unified, names, images)


def labels(counts, folder="/data", classes=CLASSES, **more):
    """So many boxes of each class in the second image."""
    box = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS} | more
    annotations = [box | {"category_id": c} for c in np.repeat([0, 1], counts).tolist()]
    record = {"file_name": f"{folder}/1.png", "image_id": 1 if folder == "/data" else 77}
    return LabelSet([record | {"annotations": annotations}], classes, "people")


def refused(words, **given):
    with pytest.raises(ConfigError, match=words):
        check(**given)


def test_where_ignore_boxes_begin_below_one_threshold_of_all():
    check()
    check(t_ignore=0.5)
    refused("T_IGNORE .* is 0.6, above .* 0.5 of 'car'", t_ignore=0.6)
    check(t_ignore=0.6, threshold=0.6)
    # on the scale of several teachers all thresholds are 0.5
    check(t_ignore=0.5, threshold=0.2, unified=TWO)
    refused("threshold 0.5 of 'car'", t_ignore=0.6, threshold=0.7, unified=TWO)


def test_thresholds_of_a_file(tmp_path):
    file = tmp_path / "t.json"
    given = {"threshold_mode": "file", "threshold_file": file}
    refused("cannot be read", **given)
    file.write_text(json.dumps({"car": 0.6, "dog": 0.4}))
    check(t_ignore=0.4, **given)
    refused("T_IGNORE .* is 0.5, above .* 0.4 of 'dog'", t_ignore=0.5, **given)
    check(t_ignore=0.5, unified=TWO, **given)
    refused("threshold 0.5 of 'car'", t_ignore=0.55, unified=TWO, **given)
    file.write_text(json.dumps({"car": 0.6}))
    refused("no threshold for 'dog'", **given)


@pytest.mark.parametrize("mode", ["per_class_fbeta", "per_class_count"])
def test_thresholds_that_labels_will_tell(mode):
    many = labels([LEAST_LABELS, LEAST_LABELS])
    given = {"threshold_mode": mode, "labels": many}
    check(t_ignore=0.3, **given)
    refused("T_IGNORE .* is 0.35, above .* 0.3 that 'car' may get", t_ignore=0.35, **given)
    check(t_ignore=0.35, limits=(0.35, 0.9), **given)
    check(t_ignore=0.35, threshold=0.2, limits=(0.35, 0.9), **given)
    check(t_ignore=0.5, unified=TWO, **given)


def test_classes_that_get_no_threshold_of_their_own():
    few = labels([LEAST_LABELS, LEAST_LABELS - 1])
    given = {"labels": few, "threshold": 0.2, "t_ignore": 0.25}
    refused("threshold 0.2 that 'dog' may get", threshold_mode="per_class_fbeta", **given)
    check(threshold_mode="per_class_count", **given)
    given["labels"] = labels([1, 1], classes=("car", "tree"))
    refused("threshold 0.2 that 'dog' may get", threshold_mode="per_class_count", **given)


def test_labels_that_tell_nothing():
    fbeta, count = ({"threshold_mode": f"per_class_{x}"} for x in ("fbeta", "count"))
    elsewhere = labels([20, 20], folder="/elsewhere")
    refused("None of the images of people is in the run", labels=elsewhere, **fbeta)
    check(labels=elsewhere, **count)  # frequencies are of any images
    for several in (ONE, TWO):
        nothing = {"labels": labels([20, 20]), "images": [], "unified": several}
        refused("None of the images of people is in the run", **nothing, **fbeta)
    refused("No class has 10 boxes of people", labels=labels([9, 9]), **fbeta)
    refused("No class has 10 boxes of people", labels=labels([20, 20], iscrowd=1), **fbeta)
    check(labels=labels([9, 9]), **count)
    refused("people has no box of the run's classes", labels=labels([0, 0]), **count)
    strange = labels([20, 20], classes=("tree", "bush"))
    refused("None of the classes of people is one of the run's", labels=strange, **count)
