"""G-DetKD's configs: stand-in teachers, plain students and distilled ones."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_pgd_configs import different
from tiny_models import build, random_batch, write_untrained

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.student import student_config
from kd_d2.config.teacher import load_teacher_cfg
from kd_d2.modeling.head_weights import HeadWeight
from kd_d2.modeling.inheritance import inherit

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# config -> plain student, iterations of the warm-up
RUNS = {
    "faster_rcnn_r50_x101_2x_ms": ("baselines/faster_rcnn_r50_2x_ms", 500),
    "retinanet_r50_x101_2x_ms": ("baselines/retinanet_r50_2x_ms", 1000),
    "fcos_r50_x101_2x_ms": ("baselines/fcos_r50_2x_ms", 1000),
    "faster_rcnn_r18_r50_1x": ("GDetKD/faster_rcnn_r18_1x", 500),
    "retinanet_r18_r50_1x": ("GDetKD/retinanet_r18_1x", 1000),
    "fcos_r18_r50_1x": ("GDetKD/fcos_r18_1x", 1000),
    "faster_rcnn_r50_r101_voc": ("GDetKD/faster_rcnn_r50_voc", 900),
    "retinanet_r50_r101_voc": ("GDetKD/retinanet_r50_voc", 900),
}


def load(name):
    cfg = get_kd_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("name", RUNS)
def test_heads_and_their_warm_up(name):
    cfg = load(f"GDetKD/{name}")
    kd, (_, warm_up) = cfg.MODEL.KD, RUNS[name]
    two_stage = name.startswith("faster_rcnn")
    assert ["SGFI", "CKD"] + ["RoIClassKD", "RoIBoxKD"] * two_stage == kd.HEADS
    assert ["box_head"] * two_stage == kd.INHERIT
    assert len(kd.HEAD_WEIGHTS) == len(kd.HEADS)
    for value in kd.HEAD_WEIGHTS:
        weight = HeadWeight(value, cfg.SOLVER.MAX_ITER)
        assert weight(0) == 0 and weight(round(1.02 * warm_up)) == 1
        assert weight(warm_up // 2) == pytest.approx(0.5, abs=0.01)


def test_defaults_are_those_of_the_readme():
    kd = get_kd_cfg().MODEL.KD
    assert (kd.SGFI.WEIGHT, kd.CKD.WEIGHT) == (1.0, 0.5)
    assert (kd.ROICLASSKD.WEIGHT, kd.ROIBOXKD.WEIGHT) == (1.0, 1.0)
    assert (kd.SGFI.TEMPERATURE, kd.SGFI.EMBED_CHANNELS) == (1.0, [128, 64])
    assert (kd.CKD.TEMPERATURE, kd.CKD.IOU_THRESHOLD, kd.CKD.QUEUE_SIZE) == (0.07, 0.5, 16384)
    assert (kd.REGIONS.BATCH_SIZE_PER_IMAGE, kd.REGIONS.POSITIVE_FRACTION) == (512, 0.25)


@pytest.mark.parametrize("name", RUNS)
def test_the_baseline_differs_in_the_distillation_only(name):
    keys = different(load(f"GDetKD/{name}"), load(RUNS[name][0]))
    allowed = ("MODEL.KD.", "MODEL.META_ARCHITECTURE", "OUTPUT_DIR")
    assert all(key.startswith(allowed) for key in keys)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("faster_rcnn")])
def test_the_teacher_s_box_head_fits(name):
    cfg = load(f"GDetKD/{name}")
    sides = []
    for side in (student_config(cfg), load_teacher_cfg(cfg)):
        side = side.clone()
        side.defrost()
        side.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            sides.append(build_model(side))
    copied = inherit(*sides, cfg.MODEL.KD.INHERIT)
    assert len(copied) == 8 and "roi_heads.box_head.fc2.weight" in copied


def shrink(cfg):
    cfg.defrost()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1, 64
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.WEIGHTS = ""
    return cfg


@pytest.mark.parametrize("name", RUNS)
def test_takes_a_step(name, tmp_path):
    cfg = shrink(load(f"GDetKD/{name}"))
    teacher = shrink(load_teacher_cfg(cfg).clone())
    node = cfg.MODEL.KD.TEACHER
    node.CONFIG_FILE, node.WEIGHTS = write_untrained(teacher, tmp_path, "teacher")
    check_config(cfg)
    model = build(cfg).train()
    with EventStorage():
        losses = model(random_batch(sizes=((64, 96), (96, 64))))
    added = {"loss_sgfi", "loss_ckd"}
    if name.startswith("faster_rcnn"):
        added |= {"loss_roi_class_kd", "loss_roi_box_kd"}
    assert added <= losses.keys()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
