"""LGD on data of one's own: any number of classes, images without objects, crowds, masks as RLE."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as rle

from kd_d2.engine import DistillationTrainer

ARCHS = ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN"]


def with_classes(cfg, count):
    for node in ("RETINANET", "FCOS", "ROI_HEADS"):
        cfg.MODEL[node].NUM_CLASSES = count
    return cfg


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("count", [1, 365])
def test_any_number_of_classes(arch, count, lgd_cfg, build, random_batch, storage):
    cfg = with_classes(lgd_cfg(arch), count)
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = cfg.MODEL.MASK_ON
    model = build(cfg).train()
    width = 4 + count + (49 if cfg.MODEL.MASK_ON else 0)
    assert model.teacher.label_encoder_.conv1.in_channels == width
    batch = random_batch(objects=(2, 0), masks=cfg.MODEL.MASK_ON)
    batch[0]["instances"].gt_classes = torch.tensor([0, count - 1])
    losses = model(batch)
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        for teacher in (False, True):
            results = model.inference(batch, teacher=teacher)
            assert all(isinstance(x["instances"], Instances) for x in results)


def rle_of(box, size):
    x, y, w, h = box
    mask = np.zeros((size, size), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = rle.encode(mask)
    return {**encoded, "counts": encoded["counts"].decode()}


@pytest.fixture
def own_data(tmp_path):
    """Four images of 64 px: objects, none, a crowd beside an object, nothing but a crowd."""
    size, images, annotations = 64, [], []
    labels = [[(0, 0), (5, 0)], [], [(2, 0), (1, 1)], [(3, 1)]]  # class, crowd
    for i, objects in enumerate(labels):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": size, "width": size})
        for k, (category, crowd) in enumerate(objects):
            box = [4 + 20 * k, 8, 24, 30]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "bbox": box, "area": 720}
                | {"iscrowd": crowd, "segmentation": rle_of(box, size)}
                | {"category_id": 10 * (category + 1)}  # ids with gaps
            )
    categories = [{"id": 10 * (k + 1), "name": f"thing {k}"} for k in range(7)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "own.json").write_text(json.dumps({"info": {}, **data}))
    register_coco_instances("own_data", {}, str(tmp_path / "own.json"), str(tmp_path))
    yield "own_data"
    DatasetCatalog.remove("own_data")
    MetadataCatalog.remove("own_data")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_registered_data_set_trains_and_is_evaluated(arch, own_data, lgd_cfg, tmp_path):
    # 64: torch refuses group norms of one channel a group on a level of one cell
    cfg = with_classes(lgd_cfg(arch, fpn_channels=64), 7)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (own_data,)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MASK_FORMAT = "bitmask"  # that of run-length codes
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = cfg.MODEL.MASK_ON
    cfg.MODEL.KD.LGD.PRE_NONDISTILL = 1
    cfg.MODEL.KD.EVAL_TEACHER = True
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 2, 4, 1e-5
    cfg.TEST.EVAL_PERIOD = 0
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SEED = 1
    trainer = DistillationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = trainer.test(cfg, trainer.model)
    assert {"bbox", "bbox_teacher"} <= results.keys()
    assert ("segm" in results and "segm_teacher" in results) == (arch == "MaskRCNN")
    assert (tmp_path / "run" / "model_student.pth").is_file()


def test_a_wrong_number_of_classes_is_refused_in_one_sentence(own_data, lgd_cfg, tmp_path):
    cfg = with_classes(lgd_cfg("FasterRCNN"), 8)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (own_data,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path)
    match = "has 7 classes but MODEL.ROI_HEADS.NUM_CLASSES is 8"
    with pytest.raises(ValueError, match=match):
        DistillationTrainer(cfg)
