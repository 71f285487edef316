"""Labels at test time, and images that cannot be read."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

from kd_d2.data.mappers import (
    RobustDatasetMapper,
    UnusableImage,
    build_annotated_test_mapper,
)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 80
    cfg.INPUT.CROP.ENABLED = True  # training's augmentations must not leak into a test
    return cfg


def _record(folder, name="image.png", **extra):
    path = folder / name
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "image_id": 1, "height": 40, "width": 60, **extra}


def _box(box, category, **extra):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, **extra}


def test_labels_come_in_the_coordinates_of_the_resized_image(cfg, tmp_path):
    labels = [_box([10, 5, 20, 30], 3), _box([0, 0, 60, 40], 1, iscrowd=1)]
    record = _record(tmp_path, annotations=labels)
    for _ in range(3):
        data = build_annotated_test_mapper(cfg)(record)
        assert data["image"].shape == (3, 80, 120)
        assert (data["height"], data["width"]) == (40, 60)
        assert data["instances"].image_size == (80, 120)
        assert data["instances"].gt_boxes.tensor.tolist() == [[20.0, 10.0, 60.0, 70.0]]
        assert data["instances"].gt_classes.tolist() == [3]
    assert record["annotations"] == labels  # the record itself stays as it was
    plain = DatasetMapper(cfg, is_train=False)(record)
    assert torch.equal(plain["image"], data["image"]) and "instances" not in plain


def test_masks_are_kept_where_the_model_has_them(cfg, tmp_path):
    cfg.MODEL.MASK_ON = True
    polygon = [10.0, 5.0, 30.0, 5.0, 30.0, 35.0, 10.0, 35.0]
    record = _record(tmp_path, annotations=[_box([10, 5, 20, 30], 3, segmentation=[polygon])])
    instances = build_annotated_test_mapper(cfg)(record)["instances"]
    assert instances.gt_masks.polygons[0][0].tolist() == [2 * value for value in polygon]


@pytest.mark.parametrize("extra", [{}, {"annotations": []}])
def test_images_without_labels_give_empty_instances(cfg, tmp_path, extra):
    instances = build_annotated_test_mapper(cfg)(_record(tmp_path, **extra))["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.shape == (0,) and instances.gt_classes.dtype == torch.int64


def _spoil(record, how):
    if how == "missing":
        record["file_name"] += ".gone"
    elif how == "no image":
        with open(record["file_name"], "wb") as file:
            file.write(b"this is not an image")
    elif how == "truncated":
        with open(record["file_name"], "rb+") as file:
            file.truncate(2000)
    elif how == "size":
        record["width"] = 61


@pytest.mark.parametrize("how", ["missing", "no image", "truncated", "size"])
def test_a_bad_image_is_named(cfg, tmp_path, how):
    record = _record(tmp_path)
    mapper = RobustDatasetMapper(DatasetMapper(cfg, is_train=False))
    assert mapper(record)["image"].shape == (3, 80, 120)
    _spoil(record, how)
    with pytest.raises(ValueError, match="repair the file or take it out") as caught:
        mapper(record)
    assert record["file_name"] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["missing", "no image", "truncated", "size"])
def test_a_skipped_image_is_logged_once(cfg, tmp_path, caplog, how):
    bad = _record(tmp_path, "bad.png")
    _spoil(bad, how)
    mapper = RobustDatasetMapper(DatasetMapper(cfg, is_train=False), on_error="skip")
    with caplog.at_level(logging.WARNING, logger="kd_d2"):
        for _ in range(3):
            with pytest.raises(UnusableImage):
                mapper(bad)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("kd_d2")]
    assert len(messages) == 1 and bad["file_name"] in messages[0]
    assert mapper.bad_files == {bad["file_name"]}


def test_skipping_has_a_limit(cfg, tmp_path):
    mapper = RobustDatasetMapper(
        DatasetMapper(cfg, is_train=False), on_error="skip", max_bad_files=2
    )
    gone = [{"file_name": str(tmp_path / f"{k}.png")} for k in range(3)]
    for record in (gone[0], gone[1], gone[1]):
        with pytest.raises(UnusableImage):
            mapper(record)
    with pytest.raises(ValueError, match="3 images cannot be used.*limit of 2.*2.png") as caught:
        mapper(gone[2])
    assert not isinstance(caught.value, UnusableImage)


def test_errors_with_another_reason_pass_through(tmp_path):
    def broken(record):
        raise ValueError("a bug in the mapper")

    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match="^a bug in the mapper$"):
            RobustDatasetMapper(broken, on_error=on_error)(_record(tmp_path))
        with pytest.raises(ValueError, match="^a bug in the mapper$"):
            RobustDatasetMapper(broken, on_error=on_error)({"image_id": 1})


def test_a_wrong_mode_is_refused():
    with pytest.raises(ValueError, match="'raise' or 'skip', not 'ignore'"):
        RobustDatasetMapper(dict, on_error="ignore")
