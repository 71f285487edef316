"""PGD's configs: a teacher, a plain student and the distilled one for each row of its tables."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from tiny_models import build, random_batch, write_untrained

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.files import flat_keys
from kd_d2.config.teacher import load_teacher_cfg

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# config -> META_ARCH, key locations, temperature, alpha
COCO = {
    "fcos_r101_r50_1x": ("FCOS", 30, 0.8, 0.04),
    "auto_assign_r101_r50_1x": ("AutoAssign", 30, 0.4, 0.08),
    "atss_r101_r50_1x": ("ATSS", 9, 0.8, 0.08),
    "gfl_r101_r50_1x": ("GFL", 30, 0.8, 0.04),
    "ddod_r101_r50_1x": ("DDOD", 30, 0.8, 0.08),
    "fcos_r101_mobilenet_v2_1x": ("FCOS", 30, 0.8, 0.04),
    "atss_r101_mobilenet_v2_1x": ("ATSS", 9, 0.8, 0.04),
}
CROWD = "ddod_r101_r50_crowdhuman_12e"


def load(name):
    cfg = get_kd_cfg()
    cfg.merge_from_file(str(CONFIGS / "PGD" / f"{name}.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def values(cfg):
    found = {}
    for key in flat_keys(cfg):
        node = cfg
        for part in key.split("."):
            node = node[part]
        found[key] = node
    return found


def different(a, b):
    a, b = values(a), values(b)
    return {key for key in a if a[key] != b[key]}


def plain_of(name):
    return name.replace("_r101", "")


@pytest.mark.parametrize("name", COCO)
def test_constants_of_the_paper(name):
    arch, topk, temperature, alpha = COCO[name]
    cfg = load(name)
    kd, pgd = cfg.MODEL.KD, cfg.MODEL.KD.PGD
    assert (arch, topk, temperature, alpha) == (kd.STUDENT, pgd.TOPK, pgd.TEMPERATURE, pgd.ALPHA)
    assert pytest.approx((alpha / 2, 1.6 * alpha, 0.0008)) == (pgd.BETA, pgd.GAMMA, pgd.DELTA)
    assert (pgd.CLS_EXPONENT, pgd.REG_EXPONENT) == (0.8, 0.6)
    assert pgd.LEVEL_WEIGHTS == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert kd.HEADS == ["PGD"] and kd.INHERIT == ["neck", "head"] and pgd.MODE == "corrected"
    assert ("teacher" if arch == "DDOD" else "student") == kd.ASSIGN_BY


def test_constants_on_crowdhuman():
    cfg = load(CROWD)
    pgd = cfg.MODEL.KD.PGD
    assert (pgd.ALPHA, pgd.BETA, pgd.GAMMA, pgd.TOPK) == (0.001, 0.0005, 0.0016, 30)
    assert cfg.MODEL.DDOD.NUM_CLASSES == 1 and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 500
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1400)


@pytest.mark.parametrize("name", [*COCO, CROWD])
def test_the_baseline_differs_in_the_distillation_only(name):
    keys = different(load(name), load(plain_of(name)))
    allowed = ("MODEL.KD.", "MODEL.META_ARCHITECTURE", "OUTPUT_DIR", "SOLVER.AMP.ENABLED")
    assert all(key.startswith(allowed) for key in keys)


@pytest.mark.parametrize("name", [*COCO, CROWD])
def test_the_teacher_is_the_same_detector_on_a_larger_backbone(name):
    student, teacher = load(plain_of(name)), load_teacher_cfg(load(name))
    assert teacher.MODEL.RESNETS.DEPTH == 101 and student.MODEL.RESNETS.DEPTH == 50
    keys = {k for k in different(student, teacher) if k.startswith("MODEL.")}
    backbone = {"MODEL.RESNETS.DEPTH", "MODEL.WEIGHTS"}
    if "mobilenet" in name:
        backbone |= {"MODEL.BACKBONE.NAME", "MODEL.BACKBONE.FREEZE_AT", "MODEL.RESNETS.NORM"}
        assert (student.MODEL.BACKBONE.FREEZE_AT, student.MODEL.RESNETS.NORM) == (0, "BN")
    assert keys == backbone
    assert not teacher.SOLVER.CLIP_GRADIENTS.ENABLED
    assert teacher.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"


def shrink(cfg):
    """R-18 with few channels, weights shared by name between student and teacher."""
    cfg.defrost()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.WEIGHTS = ""
    return cfg


@pytest.mark.parametrize("name", [*COCO, CROWD])
def test_takes_a_step(name, tmp_path):
    cfg = shrink(load(name))
    teacher: CfgNode = shrink(load_teacher_cfg(cfg).clone())
    node = cfg.MODEL.KD.TEACHER
    node.CONFIG_FILE, node.WEIGHTS = write_untrained(teacher, tmp_path, "teacher")
    check_config(cfg)
    model = build(cfg).train()
    batch = random_batch(sizes=((64, 96), (96, 64)))
    if name == CROWD:
        for x in batch:
            x["instances"].gt_classes.zero_()
    with EventStorage():
        losses = model(batch)
    assert sum("loss_pgd" in key for key in losses) == 10
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
