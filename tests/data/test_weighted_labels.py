"""Weights and boxes to ignore, from annotations to the model's input."""

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from kd_d2 import get_kd_cfg
from kd_d2.config.rules import ConfigError
from kd_d2.data.weighted_labels import WeightedLabelMapper


def annotation(box, category=0, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category} | more


ANNOTATIONS = [
    annotation([10, 10, 30, 30], weight=0.5, score=0.7, box_agreement=0.9),
    annotation([40, 20, 60, 50], 1, weight=0.25, score=0.6, box_agreement=0.5),
    annotation([0, 0, 20, 20], score=0.4, ignore=1, iscrowd=1),
    annotation([70, 0, 90, 30], 2),  # a person's
    annotation([0, 40, 20, 60], iscrowd=1, weight=0.1),
    annotation([50, 50, 50, 50], weight=0.9),  # nothing is left of it
]


@pytest.fixture
def record(tmp_path):
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(tmp_path / "x.png")
    return {"file_name": str(tmp_path / "x.png"), "height": 80, "width": 100}


def mapped(record, annotations=ANNOTATIONS, flip="none", **settings):
    cfg = get_kd_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES = "RetinaNet", 3
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (160,), flip
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = True
    for key, value in settings.items():
        cfg.MODEL.LABEL_WEIGHTS[key] = value
    mapper = WeightedLabelMapper(cfg)
    return mapper({**record, "annotations": [dict(x) for x in annotations]})["instances"]


def test_fields_stay_with_their_objects(record):
    gt = mapped(record)
    assert gt.gt_boxes.tensor[0].tolist() == [20, 20, 60, 60]
    assert gt.gt_classes.tolist() == [0, 1, 2]
    assert gt.gt_weights.tolist() == gt.gt_box_weights.tolist() == [0.5, 0.25, 1.0]
    assert gt.ignore_boxes.tensor.tolist() == [[0, 0, 40, 40]] and len(gt.ignore_boxes) == 3


def test_boxes_to_ignore_are_augmented_as_the_image_is(monkeypatch, record):
    cfg_flip = mapped(record, [annotation([0, 0, 20, 20], ignore=1)] * 3)
    assert len(cfg_flip) == 0 and cfg_flip.ignore_boxes.tensor.shape == (3, 4)
    assert cfg_flip.gt_weights.shape == (0,)
    np.random.seed(0)
    found = {
        tuple(mapped(record, flip="horizontal").ignore_boxes.tensor[0].tolist()) for _ in range(20)
    }
    assert found == {(0, 0, 40, 40), (160, 0, 200, 40)}


@pytest.mark.parametrize(
    "box_loss, expected",
    [("all", [0.5, 0.25, 1.0]), ("reliable", [0.5, 0.0, 1.0]), ("none", [0.0, 0.0, 1.0])],
)
def test_which_boxes_train_the_box_losses(box_loss, expected, record):
    gt = mapped(record, BOX_LOSS=box_loss)
    assert gt.gt_box_weights.tolist() == expected
    assert gt.gt_weights.tolist() == [0.5, 0.25, 1.0]


def test_all_alike_unless_they_are_to_be_weighed(record):
    gt = mapped(record, ENABLED=False, BOX_LOSS="none")
    assert gt.gt_weights.tolist() == [1.0, 1.0, 1.0]
    assert gt.gt_box_weights.tolist() == [0.0, 0.0, 1.0]


def test_images_without_annotations(record):
    gt = mapped(record, [])
    assert len(gt) == 0 and gt.ignore_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("covered", [[2, 0], []])
def test_covered_classes_belong_to_the_image(covered, record):
    record["covered_classes"] = covered
    gt = mapped(record, COVERED=True)
    assert gt.covered_classes.tensor.tolist() == covered
    assert gt.covered_classes.tensor.dtype == torch.long and len(gt.covered_classes) == 3
    assert not mapped(record).has("covered_classes")


def test_all_classes_are_covered_if_the_record_is_silent(record):
    assert not mapped(record, COVERED=True).has("covered_classes")


@pytest.mark.parametrize("wrong", [3, -1, "car"])
def test_covered_classes_that_the_detector_does_not_have(wrong, record):
    record["covered_classes"] = [0, wrong]
    with pytest.raises(
        ConfigError, match=f"x.png has {wrong!r}, which is no class of the detector"
    ):
        mapped(record, COVERED=True)
    assert not mapped(record).has("covered_classes")


def test_the_detector_of_a_distiller_says_how_many_classes_there_are(record):
    cfg = get_kd_cfg()
    cfg.MODEL.LABEL_WEIGHTS.COVERED = True
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.STUDENT = "FrozenTeacherDistiller", "ATSS"
    cfg.MODEL.ATSS.NUM_CLASSES = 2
    with pytest.raises(ConfigError, match="has 2, which is no class"):
        WeightedLabelMapper(cfg)({**record, "annotations": [], "covered_classes": [2]})
