"""CrowdHuman in Detectron2's catalogs: what is loaded, left out and handed to a detector."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from PIL import Image
from tiny_models import tiny_cfg

from kd_d2.data.crowdhuman import (
    SPLITS,
    load_crowdhuman,
    register_crowdhuman,
    split_files,
    why_untrainable,
)
from kd_d2.data.requirements import check_datasets, check_num_classes
from kd_d2.engine import DistillationTrainer

BOXES = [  # x, y, w, h, iscrowd, whether it is trained on
    ([-20, 10, 60, 120], 0, True),
    ([10, 10, 30, 40], 1, True),
    ([-20, 10, 20, 40], 0, False),  # touches the border from outside
    ([-20, 10, 20.5, 40], 0, True),
    ([10, 80, 20, 20], 0, False),  # below
    ([10, 10, 0.9, 20], 0, False),
    ([10, 10, 20, 0.5], 1, False),
    ([10, 10, 1, 1], 0, True),
]


@pytest.fixture
def root(tmp_path):
    """A data folder with one image in val, registered."""
    _, json_file, images = split_files(tmp_path, "val")
    images.mkdir(parents=True)
    json_file.parent.mkdir(parents=True)
    Image.new("RGB", (100, 80)).save(images / "a.jpg")
    labels = [
        {
            "id": k,
            "image_id": 0,
            "category_id": 1,
            "bbox": box,
            "visible_bbox": [1, 2, 3, k],
            "area": box[2] * box[3],
            "iscrowd": crowd,
        }
        for k, (box, crowd, _) in enumerate(BOXES, 1)
    ]
    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 100, "height": 80}],
        "annotations": labels,
        "categories": [{"id": 1, "name": "person"}],
    }
    json_file.write_text(json.dumps(content))
    register_crowdhuman(tmp_path, prefix="crowd_test")
    yield tmp_path
    for split in SPLITS:
        DatasetCatalog.remove(f"crowd_test_{split}")
        MetadataCatalog.remove(f"crowd_test_{split}")


def test_metadata_is_known_before_anything_is_read(root):
    metadata = MetadataCatalog.get("crowd_test_train")
    assert metadata.thing_classes == ["person"] and metadata.evaluator_type == "crowdhuman"
    assert metadata.json_file == str(root / "crowdhuman" / "annotations" / "train.json")
    assert metadata.image_root == str(root / "crowdhuman" / "Images")
    register_crowdhuman("elsewhere", prefix="crowd_test")  # what is registered stays
    assert MetadataCatalog.get("crowd_test_train").json_file.startswith(str(root))


def test_boxes_are_left_out_or_whole(root):
    (record,) = DatasetCatalog.get("crowd_test_val")
    assert record["image_id"] == 0 and (record["width"], record["height"]) == (100, 80)
    kept = [(k, box, crowd) for k, (box, crowd, trained) in enumerate(BOXES, 1) if trained]
    assert [(x["visible_bbox"][3], x["bbox"], x["iscrowd"]) for x in record["annotations"]] == kept
    assert {x["category_id"] for x in record["annotations"]} == {0}


def test_reasons():
    assert why_untrainable([100, 0, 10, 10], 100, 80) == "outside the image"
    assert why_untrainable([99.5, 0, 10, 10], 100, 80) is None
    assert why_untrainable([0, -10, 10, 10], 100, 80) == "outside the image"
    assert why_untrainable([0, 0, 10, 0.99], 100, 80) == "thinner than a pixel"


def test_a_detector_gets_clipped_persons_without_ignore_regions(root):
    cfg = tiny_cfg()
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (160,)
    (record,) = load_crowdhuman(*map(str, split_files(root, "val")[1:]), "crowd_test_val")
    image = DatasetMapper(cfg, is_train=True)(record)
    assert image["image"].shape == (3, 160, 200)
    expected = [[0.0, 20, 80, 160], [0, 20, 1, 100], [20, 20, 22, 22]]
    torch.testing.assert_close(image["instances"].gt_boxes.tensor, torch.tensor(expected))


def test_a_detector_is_evaluated_by_its_metrics(root, build):
    cfg = tiny_cfg()
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.DATASETS.TEST = ("crowd_test_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(root / "out")
    results = DistillationTrainer.test(cfg, build(cfg))
    assert set(results["bbox"]) == {"AP", "MR", "JI"}
    lines = json.loads((root / "out" / "inference" / "coco_instances_results.json").read_text())
    assert lines and {(x["image_id"], x["category_id"]) for x in lines} == {(0, 1)}


def test_checks(root):
    cfg = tiny_cfg()
    cfg.DATASETS.TEST = ("crowd_test_val",)
    check_datasets(cfg, ("TEST",))
    with pytest.raises(ValueError, match="has 1 class but MODEL.RETINANET.NUM_CLASSES is 3"):
        check_num_classes(cfg, "RetinaNet")
    cfg.DATASETS.TRAIN = ("crowd_test_train",)
    with pytest.raises(FileNotFoundError, match=r"there is no .*annotations/train\.json: put"):
        check_datasets(cfg, ("TRAIN",))
