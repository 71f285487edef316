"""LAD's configs: the recipe of its PAAs, who teaches whom and what, and heads and anchors."""

from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from test_configs import RUNS, batch_of, build_on_meta
from test_pgd_configs import different
from tiny_models import build, random_batch, write_untrained

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.peer import peer_config
from kd_d2.config.student import student_config
from kd_d2.config.teacher import load_teacher_cfg
from kd_d2.engine.optimizer import build_optimizer
from kd_d2.modeling.backbones import LinearLastLevelP6P7

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# config -> depth of the student, schedule, objectness, IoU branch
PAAS = {
    "paa_r18_1x": (18, "1x", "none", True),
    "paa_r50_1x": (50, "1x", "none", True),
    "paa_r101_1x": (101, "1x", "none", True),
    "paa_r101_2x": (101, "2x", "none", True),
    "paa_r50_3x_ms": (50, "3x_ms", "none", True),
    "paa_iop_r18_1x": (18, "1x", "iop", True),
    "paa_iop_r50_1x": (50, "1x", "iop", True),
    "paa_cop_r18_1x": (18, "1x", "cop", True),
    "paa_cop_r50_1x": (50, "1x", "cop", True),
    "paa_iop_base_r18_1x": (18, "1x", "iop", False),
    "paa_iop_base_r50_1x": (50, "1x", "iop", False),
    "paa_cop_base_r18_1x": (18, "1x", "cop", False),
    "paa_cop_base_r50_1x": (50, "1x", "cop", False),
}
TAUGHT = {
    "kd_r50_r101_1x": (50, "1x", "none", True),
    "lad_r50_r101_1x": (50, "1x", "none", True),
    "solad_r50_r101_1x": (50, "1x", "none", True),
    "kd_r101_r50_1x": (101, "1x", "none", True),
    "lad_r101_r50_1x": (101, "1x", "none", True),
    "colad_r101_cop_r50_2x_ms": (101, "2x_ms", "cop", True),
    "colad_r101_r50_1x": (101, "1x", "none", True),
    "lad_r50_swin_b_1x": (50, "1x", "none", True),
    "lad_r101_swin_b_2x_ms": (101, "2x_ms", "none", True),
}
ROWS = PAAS | TAUGHT
# config -> that of its teacher or peer, and whether that is trained beforehand
TEACHERS = {
    "LAD/kd_r50_r101_1x": ("LAD/paa_r101_1x", True),
    "LAD/lad_r50_r101_1x": ("LAD/paa_r101_1x", True),
    "LAD/solad_r50_r101_1x": ("LAD/paa_r101_1x", True),
    "LAD/kd_r101_r50_1x": ("LAD/paa_r50_1x", True),
    "LAD/lad_r101_r50_1x": ("LAD/paa_r50_1x", True),
    "LAD/colad_r101_cop_r50_2x_ms": ("LAD/paa_r50_3x_ms", True),
    "LAD/colad_r101_r50_1x": ("LAD/paa_r50_1x", False),
    "LAD/lad_r50_swin_b_1x": ("LAD/paa_swin_b_3x_ms", True),
    "LAD/lad_r101_swin_b_2x_ms": ("LAD/paa_swin_b_3x_ms", True),
    "quickstart/kd_paa": ("quickstart/plain_paa_wide", True),
    "quickstart/lad_paa": ("quickstart/plain_paa_wide", True),
    "quickstart/solad_paa": ("quickstart/plain_paa_wide", True),
    "quickstart/colad_paa": ("quickstart/plain_paa_wide", False),
}
# schedule -> iterations, steps, short sides
SCHEDULES = {
    "1x": (87960, (58640, 80630), (800,)),
    "2x": (175920, (117280, 161260), (800,)),
    "2x_ms": (175920, (117280, 161260), (640, 800)),
    "3x_ms": (263880, (205240, 249220), (640, 800)),
}
# method -> who assigns, heads, whether labels count
METHODS = {
    "kd": ("student", ["FocalSoftLabel"], False),
    "lad": ("teacher", [], True),
    "solad": ("teacher", ["FocalSoftLabel"], True),
    "colad": ("student", [], True),
}
LABELS = {"loss_cls", "loss_box_reg", "loss_iou"}
SOFT = {"loss_soft_cls", "loss_soft_box", "loss_soft_iou"}
LOSSES = {
    "kd": SOFT,
    "lad": LABELS,
    "solad": LABELS | SOFT,
    "colad": LABELS | {f"{name}.peer" for name in LABELS},
}


def load(name):
    cfg = get_kd_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def method_of(name):
    return Path(name).name.split("_")[0]


def plain_of(name):
    """The plain config of a student, where there is one."""
    if name.startswith("quickstart/"):
        return "quickstart/plain_paa"
    return None if "_cop_" in name or "2x_ms" in name else f"LAD/paa_{name.split('_')[1]}_1x"


def shrink(cfg):
    """R-18 and few channels; anchors, head and losses stay."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    if cfg.DATASETS.TRAIN == ("coco_2017_train",):
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        cfg.MODEL.FPN.OUT_CHANNELS = 32
    return cfg


def test_every_row_is_there():
    runs = {p.removesuffix(".yaml") for p in RUNS}
    rows = {f"LAD/{name}" for name in [*ROWS, "paa_swin_b_3x_ms"]}
    assert {p for p in runs if p.startswith("LAD/")} == rows
    assert {p for p in TEACHERS if p.startswith("LAD/")} == {f"LAD/{name}" for name in TAUGHT}
    taught = {f"quickstart/{method}_paa" for method in METHODS}
    assert taught == {p for p in TEACHERS if p.startswith("quickstart/")}
    assert taught | {"quickstart/pkd_paa", "quickstart/lgd_paa"} <= runs


def test_the_swin_has_the_pyramid_of_the_others():
    swin = build_on_meta(load("LAD/paa_swin_b_3x_ms"))
    other = build_on_meta(load("LAD/paa_r50_1x"))
    assert isinstance(swin.backbone.top_block, LinearLastLevelP6P7)
    assert swin.backbone.top_block.in_feature == "p5"
    assert swin.backbone.size_divisibility == other.backbone.size_divisibility == 32
    assert swin.head.state_dict().keys() == other.head.state_dict().keys()


# ---- the recipe


@pytest.mark.parametrize("name", ROWS)
def test_schedule_and_images(name):
    cfg = load(f"LAD/{name}")
    iterations, steps, sizes = SCHEDULES[ROWS[name][1]]
    solver, images = cfg.SOLVER, cfg.INPUT
    assert (iterations, steps, 0.1) == (solver.MAX_ITER, solver.STEPS, solver.GAMMA)
    assert (solver.IMS_PER_BATCH, solver.LR_SCHEDULER_NAME) == (16, "WarmupMultiStepLR")
    warm_up = (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD)
    assert warm_up == (500, 0.001, "linear")
    assert not solver.CLIP_GRADIENTS.ENABLED and solver.AMP.ENABLED
    assert sizes == images.MIN_SIZE_TRAIN
    assert ("choice" if len(sizes) == 1 else "range") == images.MIN_SIZE_TRAIN_SAMPLING
    assert (images.MAX_SIZE_TRAIN, images.MIN_SIZE_TEST, images.MAX_SIZE_TEST) == (1333, 800, 1333)
    assert (images.FORMAT, images.RANDOM_FLIP) == ("RGB", "horizontal")
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.DATASETS.TEST == ("coco_2017_val",)
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS


@pytest.mark.parametrize("name", ["LAD/paa_r50_1x", "LAD/colad_r101_cop_r50_2x_ms"])
def test_all_parameters_have_one_rate_and_one_decay(name, tmp_path):
    """Norms, biases and scales included, those of a peer, too."""
    cfg = load(name)
    if "colad" in name:
        small(cfg, tmp_path)
    model = build(shrink(cfg))
    optimizer = build_optimizer(cfg, model)
    parts = list(optimizer.parts.values()) if "colad" in name else [optimizer]
    groups = [group for part in parts for group in part.param_groups]
    assert len(parts) == 1 + ("colad" in name)
    for group in groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 0.0001)
    owned = sum(len(group["params"]) for group in groups)
    assert owned == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ROWS)
def test_detector(name):
    depth, _, objectness, iou_branch = ROWS[name]
    model = load(f"LAD/{name}").MODEL
    resnet, paa = model.RESNETS, model.PAA
    assert (depth, False, "FrozenBN") == (resnet.DEPTH, resnet.STRIDE_IN_1X1, resnet.NORM)
    file = "resnet18-f37072fd.pth" if depth == 18 else f"torchvision/R-{depth}.pkl"
    assert model.WEIGHTS.endswith(file) and model.BACKBONE.FREEZE_AT == 2
    assert model.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert model.PIXEL_STD == [58.395, 57.12, 57.375]
    assert (objectness, iou_branch) == (paa.OBJECTNESS, paa.IOU_BRANCH)
    assert (paa.FOCAL_LOSS_ALPHA, paa.FOCAL_LOSS_GAMMA) == (0.25, 2.0)
    assert (paa.BOX_LOSS_WEIGHT, paa.IOU_LOSS_WEIGHT, paa.TOPK) == (1.3, 0.5, 9)
    assert (paa.IOU_THRESHOLD, paa.SPLIT, paa.SINGLE_CANDIDATE) == (0.1, "filtered", "drop")
    assert (paa.SCORE_THRESH_TEST, paa.NMS_THRESH_TEST, paa.SCORE_VOTING) == (0.05, 0.6, True)
    assert paa.TOPK_CANDIDATES_TEST == 1000


# ---- who teaches whom, and what


@pytest.mark.parametrize("name", TEACHERS)
def test_method(name):
    cfg = load(name)
    kd, soft, method = cfg.MODEL.KD, cfg.MODEL.KD.FOCALSOFTLABEL, method_of(name)
    assert METHODS[method] == (kd.ASSIGN_BY, kd.HEADS, kd.LABEL_LOSSES)
    assert kd.STUDENT == "PAA" and kd.INHERIT == [] and kd.HEAD_WEIGHTS == []
    both = cfg.MODEL.META_ARCHITECTURE, kd.TEACHER.NAME
    peer = "CoLearningDistiller", "Peer"
    assert both == (peer if method == "colad" else ("FrozenTeacherDistiller", "Frozen"))
    weights = (2.0, 10.0, 1.3, 0.5) if method == "solad" else (10.0, 10.0, 1.3, 0.1)
    assert weights == (soft.CLS_WEIGHT, soft.QUALITY_WEIGHT, soft.BOX_WEIGHT, soft.MIN_IOU)
    assert (soft.GAMMA, soft.NEAR, kd.COLAD.SWITCH) == (0.5, "teacher", "std_mean")


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher(name):
    cfg, (teacher, trained) = load(name), TEACHERS[name]
    expected = load(teacher)
    assert not different(load_teacher_cfg(cfg), expected)
    weights = f"{expected.OUTPUT_DIR}/model_final.pth" if trained else ""
    assert weights == cfg.MODEL.KD.TEACHER.WEIGHTS
    if method_of(name) == "colad":
        keys = {"MODEL.PAA.BOX_LOSS_WEIGHTING"} | ({"MODEL.WEIGHTS"} if trained else set())
        assert different(peer_config(cfg), expected) == keys
        assert (weights or expected.MODEL.WEIGHTS) == peer_config(cfg).MODEL.WEIGHTS


@pytest.mark.parametrize("name", [x for x in TEACHERS if plain_of(x)])
def test_the_baseline_differs_in_the_distillation_only(name):
    keys = different(load(name), load(plain_of(name)))
    assert all(x.startswith(("MODEL.KD.", "MODEL.META_ARCHITECTURE", "OUTPUT_DIR")) for x in keys)


# ---- what is built


def expected_head(objectness, iou_branch):
    """Name -> shape of the parameters of a head for COCO."""
    shapes = {f"scales.{i}.scale": (1,) for i in range(5)}
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in range(0, 12, 3):  # convolution without bias, norm, ReLU
            shapes[f"{tower}.{i}.weight"] = (256, 256, 3, 3)
            shapes |= {f"{tower}.{i + 1}.{x}": (256,) for x in ("weight", "bias")}
    outputs = {"cls_score": 80, "bbox_pred": 4} | ({"iou": 1} if iou_branch else {})
    extra = {"none": {}, "cop": {"coefficients": 9}, "iop": {"objectness": 1, "background": 1}}
    for conv, channels in (outputs | extra[objectness]).items():
        shapes |= {f"{conv}.weight": (channels, 256, 3, 3), f"{conv}.bias": (channels,)}
    return shapes


@pytest.mark.parametrize("name", ROWS)
def test_layout_at_full_size(name):
    depth, _, objectness, iou_branch = ROWS[name]
    model = build_on_meta(student_config(load(f"LAD/{name}")))
    head = {k: tuple(v.shape) for k, v in model.head.state_dict().items()}
    assert head == expected_head(objectness, iou_branch)
    fpn = model.backbone
    assert type(fpn.top_block) is LinearLastLevelP6P7 and fpn.top_block.in_feature == "p5"
    inputs = (128, 256, 512) if depth == 18 else (512, 1024, 2048)
    for level, channels in zip((3, 4, 5), inputs, strict=True):
        lateral = getattr(fpn, f"fpn_lateral{level}")
        assert lateral.weight.shape == (256, channels, 1, 1) and lateral.bias is not None
    cells = [x.shape[-2:] for x in fpn(torch.empty(1, 3, 800, 1344, device="meta")).values()]
    assert cells == [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]


def anchors_of(model, cells):
    features = [torch.empty(1, 1, h, w) for h, w in cells]
    return Boxes.cat(model.anchor_generator(features)).tensor


@pytest.mark.parametrize("name", ROWS)
def test_anchors_and_weighting_of_a_plain_detector(name):
    cfg = shrink(load(f"LAD/{name}"))
    cfg.MODEL.META_ARCHITECTURE = "PAA"
    model = build(cfg)
    assert model.box_loss_weighting == "iou"
    anchors = anchors_of(model, [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)])
    assert anchors.shape == (22_400, 4)
    assert anchors[0].tolist() == [-32, -32, 32, 32]
    assert anchors[169].tolist() == [-24, -24, 40, 40]  # row by row, not rounded
    assert anchors[-1].tolist() == [768, 256, 1792, 1280]


# ---- steps


def small(cfg, folder):
    """Shrinks the teacher or peer, and gives it weights where it is trained beforehand."""
    node = cfg.MODEL.KD.TEACHER
    torch.manual_seed(1)
    config, weights = write_untrained(shrink(load_teacher_cfg(cfg)), folder, "teacher")
    node.CONFIG_FILE, node.WEIGHTS = config, weights if node.WEIGHTS else ""


def step(model, batch):
    """Names of the losses of a step that reaches every parameter."""
    with EventStorage():
        losses = model.train()(batch)
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    return set(losses)


@pytest.mark.parametrize("name", PAAS)
def test_a_plain_detector_takes_a_step(name):
    model = build(shrink(load(f"LAD/{name}")))
    iou = {"loss_iou"} if ROWS[name][3] else set()
    assert step(model, random_batch()) == {"loss_cls", "loss_box_reg"} | iou


@pytest.mark.parametrize("name", TEACHERS)
def test_a_taught_detector_takes_a_step(name, tmp_path):
    cfg, method = load(name), method_of(name)
    small(cfg, tmp_path)
    cfg = shrink(cfg)
    check_config(cfg)
    model = build(cfg)
    student, teacher = model.student, model.teacher.detector
    weightings = {"kd": ("iou", "iou"), "colad": ("none", "none")}.get(method, ("none", "iou"))
    assert (student.box_loss_weighting, teacher.box_loss_weighting) == weightings
    cells = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
    assert torch.equal(anchors_of(student, cells), anchors_of(teacher, cells))
    assert all(p.requires_grad == (method == "colad") for p in teacher.head.parameters())
    batch = batch_of(96, 6) if name.startswith("quickstart/") else random_batch()
    assert step(model, batch) == LOSSES[method]
