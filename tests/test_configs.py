"""Every config: safe YAML, true to the paper's table, buildable; some take a training step."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.student import student_config
from kd_d2.config.teacher import load_teacher_cfg
from kd_d2.engine.optimizer import teacher_solver
from kd_d2.modeling import build_stages
from kd_d2.modeling.distill_heads import build_distill_head
from kd_d2.modeling.inheritance import inherit

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ALL = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
RUNS = [p for p in ALL if not Path(p).name.startswith("Base-") and not p.startswith("backbones/")]
QUICKSTART = [p for p in RUNS if p.startswith("quickstart/")]
LGD = [p for p in RUNS if p.startswith("LGD/")]
PKD = [p for p in RUNS if p.startswith("PKD/")]

# The paper's table: context box, appearance detached, POST_NONDISTILL
LGD_ROWS = {
    "retinanet_r50_2x_ms": (True, False, 0),
    "retinanet_r101_2x_ms": (True, False, 0),
    "retinanet_r101_dcnv2_2x_ms": (True, False, 0),
    "retinanet_x101_dcnv2_2x_ms": (True, False, 50000),
    "retinanet_swin_t_3x_ms": (True, False, 0),
    "fcos_r50_2x_ms": (False, False, 0),
    "fcos_r101_2x_ms": (True, False, 0),
    "fcos_r101_dcnv2_2x_ms": (True, False, 50000),
    "fcos_x101_dcnv2_2x_ms": (True, False, 50000),
    "faster_rcnn_r50_2x_ms": (False, True, 0),
    "faster_rcnn_r101_2x_ms": (False, True, 0),
    "faster_rcnn_r101_dcnv2_2x_ms": (False, True, 0),
    "faster_rcnn_x101_dcnv2_2x_ms": (False, True, 50000),
    "mask_rcnn_swin_t_3x_ms": (False, True, 0),
    # the table's single-scale headline
    "retinanet_r50_2x": (True, False, 0),
}
LGD_PAPER = [f"LGD/{name}.yaml" for name in LGD_ROWS]
# Of ours: a short name, and rows that the paper does not have
SHORT_NAMES = {"LGD/fcos_x101.yaml": "LGD/fcos_x101_dcnv2_2x_ms.yaml"}
LGD_EXTRAS = {"atss_r50_2x_ms", "cascade_rcnn_r50_2x_ms"}
STUDENTS = {"retinanet": "RetinaNet", "fcos": "FCOS", "atss": "ATSS"}
STUDENTS |= dict.fromkeys(["faster_rcnn", "mask_rcnn", "cascade_rcnn"], "GeneralizedRCNN")


def student_of(path):
    """The META_ARCH that a config's name promises."""
    name = Path(path).stem
    return next(arch for prefix, arch in STUDENTS.items() if name.startswith(prefix))


def num_classes(cfg):
    """Of the student, whatever its family calls it."""
    student = student_config(cfg)
    arch = student.MODEL.META_ARCHITECTURE
    node = "ROI_HEADS" if arch == "GeneralizedRCNN" else arch.upper()
    return student.MODEL[node].NUM_CLASSES


def load(path, *overrides):
    cfg = get_kd_cfg()
    cfg.merge_from_file(str(CONFIGS / path), allow_unsafe=False)
    cfg.merge_from_list(list(overrides))
    return cfg


def build_on_meta(cfg):
    """Builds without memory and without initial values: seconds even for X-101."""
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("path", ALL)
def test_loads_as_safe_yaml(path):
    yaml.safe_load((CONFIGS / path).read_text())
    load(path)


@pytest.mark.parametrize("path", RUNS)
def test_header_says_how_to_run_it(path):
    text = (CONFIGS / path).read_text()
    assert f"# python train_net.py --config-file configs/{path}" in text.split("_BASE_")[0]


def test_output_directories_differ():
    directories = [load(path).OUTPUT_DIR for path in RUNS]
    assert len(set(directories)) == len(RUNS)
    assert directories == [f"output/{path.removesuffix('.yaml')}" for path in RUNS]


@pytest.mark.parametrize("path", RUNS)
def test_passes_the_check(path, tmp_path):
    cfg = load(path)
    if cfg.MODEL.KD.TEACHER.WEIGHTS.startswith("output/"):  # of a run that comes first
        weights = tmp_path / "model_final.pth"
        weights.touch()
        cfg.MODEL.KD.TEACHER.WEIGHTS = str(weights)
    check_config(cfg)


@pytest.mark.parametrize("path", RUNS)
def test_number_of_classes_fits_the_data(path):
    cfg = load(path)
    assert num_classes(cfg) == len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)


# ---- COCO


@pytest.mark.parametrize(
    "name, ours",
    [
        ("retinanet_R_50_FPN_1x", "retinanet_r50_2x_ms"),
        ("faster_rcnn_R_50_FPN_1x", "faster_rcnn_r50_2x_ms"),
        ("faster_rcnn_X_101_32x8d_FPN_3x", "faster_rcnn_x101_dcnv2_2x_ms"),
    ],
)
def test_detector_is_detectron2s(name, ours):
    stock = model_zoo.get_config(f"COCO-Detection/{name}.yaml", trained=False)
    ours = load(f"baselines/{ours}.yaml")
    for key in ("TOP_BLOCK_IN_FEATURE", "TOP_BLOCK_RELU", "INIT"):
        ours.MODEL.FPN.pop(key)
    assert not ours.INPUT.pop("STRONG_AUGMENTATION")
    for node in (stock, ours):
        for key in ("DEFORM_ON_PER_STAGE", "DEFORM_MODULATED"):  # not in the zoo's X-101
            node.MODEL.RESNETS.pop(key)
    for key, value in stock.MODEL.items():
        if key == "ANCHOR_GENERATOR":
            for a, b in zip(value.pop("SIZES"), ours.MODEL[key].pop("SIZES"), strict=True):
                assert a == pytest.approx(b, rel=1e-15)
        if key not in ("WEIGHTS", "DEVICE"):
            assert ours.MODEL[key] == value, key
    assert stock.INPUT == ours.INPUT and stock.DATASETS == ours.DATASETS


@pytest.mark.parametrize("stock", ["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"])
def test_mask_rcnn_is_detectron2s_on_swin(stock):
    stock = model_zoo.get_config(f"{stock}.yaml", trained=False)
    ours = load("baselines/mask_rcnn_swin_t_3x_ms.yaml")
    for key in ("ANCHOR_GENERATOR", "RPN", "ROI_HEADS", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        assert ours.MODEL[key] == stock.MODEL[key], key
    assert ours.MODEL.MASK_ON and ours.INPUT.MASK_FORMAT == "polygon"


@pytest.mark.parametrize("path", LGD_PAPER)
def test_row_of_the_paper(path):
    cfg = load(path)
    name = Path(path).stem
    kd, lgd, solver = cfg.MODEL.KD, cfg.MODEL.KD.LGD, cfg.SOLVER
    settings = (lgd.ADD_CONTEXT_BOX, lgd.DETACH_APPEARANCE_EMBED, lgd.POST_NONDISTILL)
    assert settings == LGD_ROWS[name]
    assert (lgd.PRE_NONDISTILL, kd.FREEZE_BACKBONE, lgd.LAMBDA) == (30000, 20000, 1.0)
    assert (lgd.INTERACT_PATTERN, lgd.NUM_HEADS, lgd.ENCODER) == ("stuGuided", 8, "PointNet")
    assert name.startswith("mask_rcnn") == lgd.LOAD_LABELMAP
    assert kd.EVAL_TEACHER and kd.HEADS == ["InstructiveFeatures"]
    assert student_of(path) == kd.STUDENT
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.IMS_PER_BATCH) == (1000, 0.001, 16)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "value", 1.0)
    scales = (800,) if name.endswith("2x") else (640, 672, 704, 736, 768, 800)
    assert scales == cfg.INPUT.MIN_SIZE_TRAIN
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == (1333, 800)
    if "2x" in name:
        assert (solver.MAX_ITER, solver.STEPS) == (180000, (120000, 160000))
    else:
        assert (solver.MAX_ITER, solver.STEPS) == (270000, (210000, 250000))


@pytest.mark.parametrize("path", LGD_PAPER)
def test_solver_of_the_paper(path):
    """Norm weights are decayed like all others, by both optimisers."""
    cfg = load(path)
    sgd = 0.02 if "rcnn" in path else 0.01
    student = ("AdamW", 1e-4, 0.05, 0.05) if "swin" in path else ("SGD", sgd, 1e-4, 1e-4)
    teacher = student if path != "LGD/mask_rcnn_swin_t_3x_ms.yaml" else ("SGD", 0.02, 1e-4, 1e-4)
    for solver, expected in ((cfg.SOLVER, student), (teacher_solver(cfg).SOLVER, teacher)):
        optimizer, *numbers = expected
        found = [solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM]
        assert (solver.OPTIMIZER, found) == (optimizer, pytest.approx(numbers))
        assert (solver.MOMENTUM, solver.GAMMA, solver.NESTEROV) == (0.9, 0.1, False)


def test_every_row_is_there():
    rows = LGD_ROWS.keys() | LGD_EXTRAS
    assert rows | {Path(p).stem for p in SHORT_NAMES} == {Path(p).stem for p in LGD}
    assert rows == {Path(p).stem for p in RUNS if p.startswith("baselines/")}
    for short, name in SHORT_NAMES.items():
        cfg, full = load(short), load(name)
        assert cfg.pop("OUTPUT_DIR") != full.pop("OUTPUT_DIR") and cfg == full


@pytest.mark.parametrize("path", [p for p in LGD if p not in SHORT_NAMES])
def test_baseline_differs_in_the_distillation_only(path):
    student, plain = student_config(load(path)), load(path.replace("LGD/", "baselines/"))
    for cfg in (student, plain):
        cfg.MODEL.pop("KD")
        cfg.pop("OUTPUT_DIR")
        for value in cfg.SOLVER.pop("TEACHER").values():
            assert cfg is student or value in (None, "")
    assert student == plain


@pytest.mark.parametrize("path", LGD)
def test_a_config_is_its_base_and_a_few_lines(path):
    lines = (CONFIGS / path).read_text().splitlines()
    assert len([x for x in lines if not x.startswith("#")]) <= 11


@pytest.mark.parametrize("path", LGD)
def test_lgd_builds(path):
    model = build_on_meta(load(path))
    student = model.student
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"student", "teacher", "heads"}
    backbone = student.backbone.bottom_up
    if "swin" in path:
        assert all(p.requires_grad for p in backbone.parameters())  # nothing is frozen
        return
    deformable = [n for n, _ in backbone.named_parameters() if n.endswith("conv2_offset.weight")]
    dcn = "dcnv2" in path or "x101" in path
    # every block of res3, res4 and res5 of a 101-layer network
    assert len(deformable) == (4 + 23 + 3 if dcn else 0)
    groups = 32 if "x101" in path else 1
    assert {block.conv2.groups for block in backbone.res4} == {groups}
    assert all(p.requires_grad for p in backbone.res3.parameters())
    assert not any(p.requires_grad for p in backbone.res2.parameters())


@pytest.mark.parametrize(
    "path, student, teacher",
    [
        ("LGD/retinanet_r50_2x_ms.yaml", 37_915_572, 8_304_336),
        ("LGD/fcos_r50_2x_ms.yaml", 36_373_018, 8_304_336),
        ("LGD/faster_rcnn_r50_2x_ms.yaml", 41_699_936, 8_304_336),
        ("LGD/mask_rcnn_swin_t_3x_ms.yaml", None, 11_043_289),
    ],
)
def test_parameter_counts_of_the_paper(path, student, teacher):
    model = build_on_meta(load(path))
    assert student is None or num_parameters(model.student) == student
    assert num_parameters(model.teacher) == teacher
    assert num_parameters(model.heads) == 1_770_240


@pytest.mark.parametrize("path", [p for p in RUNS if p.startswith("baselines/")])
def test_baselines_build(path):
    model = build_on_meta(load(path))
    assert type(model).__name__ == student_of(path)
    if "rcnn" in path:
        assert model.roi_heads.mask_on == ("mask" in path)


@pytest.mark.parametrize("path", PKD)
def test_pkd_names_a_teacher_of_the_zoo(path):
    cfg = load(path)
    node = cfg.MODEL.KD.TEACHER
    assert node.WEIGHTS == "" and model_zoo.get_checkpoint_url(node.CONFIG_FILE)
    check_config(cfg)
    student = student_config(cfg)
    assert type(build_on_meta(student)).__name__ == "RetinaNet"


# ---- steps


def batch_of(size, num_classes, masks=False):
    """An image with objects, and one without."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for boxes in ([[4, 4, size // 2, size // 3], [size // 4, 8, size - 8, size - 4]], []):
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.arange(len(boxes)) % num_classes
        if masks:
            corners = instances.gt_boxes.tensor[:, [0, 1, 2, 1, 2, 3, 0, 3]].double()
            instances.gt_masks = PolygonMasks([[x.numpy()] for x in corners])
        pixels = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": pixels, "instances": instances, "height": size, "width": size})
    return batch


def take_a_step(cfg, batch):
    torch.manual_seed(0)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    with EventStorage(0):
        losses = model(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return model, losses


@pytest.mark.parametrize("path", [p for p in QUICKSTART if not load(p).MODEL.KD.TEACHER.WEIGHTS])
def test_quickstart_takes_a_step(path):
    cfg = load(path)
    model, losses = take_a_step(cfg, batch_of(96, 6, masks=cfg.MODEL.MASK_ON))
    assert ("loss_cls.tea" in losses) == ("lgd" in path)
    assert ("loss_mask" in losses) == ("mask_rcnn" in path)
    model.eval()
    with torch.no_grad():
        assert len(model(batch_of(96, 6))) == 2


@pytest.mark.parametrize("path", [p for p in QUICKSTART if "pkd" in p])
def test_quickstart_pkd_takes_a_step(path, tmp_path):
    wide = build_model(load("quickstart/plain_retinanet_wide.yaml", "MODEL.DEVICE", "cpu"))
    torch.save({"model": wide.state_dict()}, tmp_path / "teacher.pth")
    cfg = load(path)
    cfg.MODEL.KD.TEACHER.CONFIG_FILE = str(CONFIGS / "quickstart/plain_retinanet_wide.yaml")
    cfg.MODEL.KD.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
    check_config(cfg)
    model, losses = take_a_step(cfg, batch_of(96, 6))
    assert any("pkd" in name.lower() for name in losses)
    assert num_parameters(wide) > 2 * num_parameters(model.student)


@pytest.mark.parametrize("path", [p for p in QUICKSTART if "gdetkd" in p])
def test_quickstart_gdetkd_takes_a_step(path, tmp_path):
    cfg = load(path)
    torch.manual_seed(0)
    teacher_cfg = load(cfg.MODEL.KD.TEACHER.CONFIG_FILE, "MODEL.DEVICE", "cpu")
    torch.save({"model": build_model(teacher_cfg).state_dict()}, tmp_path / "teacher.pth")
    cfg.MODEL.KD.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
    check_config(cfg)
    model, losses = take_a_step(cfg, batch_of(96, 6))
    added = {"loss_sgfi", "loss_ckd"} | (
        {"loss_roi_class_kd", "loss_roi_box_kd"} if "rcnn" in path else set()
    )
    assert added <= losses.keys() and ("loss_roi_box_kd" in losses) == ("rcnn" in path)
    if "rcnn" in path:
        assert inherit(model.student, model.teacher.detector, cfg.MODEL.KD.INHERIT)


@pytest.mark.parametrize("path", PKD)
def test_pkd_pairs_the_levels_of_student_and_teacher(path):
    cfg = load(path)
    student = build_stages(build_on_meta(student_config(cfg).clone()))
    teacher = build_stages(build_on_meta(load_teacher_cfg(cfg).clone()))
    head = build_distill_head("PKD", cfg, student.feature_shapes, teacher.feature_shapes)
    assert len(head.levels) >= 4


# The largest of each family at the smallest size, on a CPU
@pytest.mark.parametrize(
    "path",
    [
        "LGD/fcos_x101.yaml",
        "LGD/faster_rcnn_x101_dcnv2_2x_ms.yaml",
        "LGD/mask_rcnn_swin_t_3x_ms.yaml",
    ],
)
def test_lgd_takes_a_step(path):
    cfg = load(path)
    # The published phase freezes the raw backbone at first; here all of it must train.
    cfg.MODEL.KD.FREEZE_BACKBONE = None
    model, losses = take_a_step(cfg, batch_of(64, 80, masks=cfg.MODEL.MASK_ON))
    student = {n for n in losses if not n.endswith(".tea") and n != "loss_distill"}
    assert losses.keys() - student - {"loss_distill"} == {f"{n}.tea" for n in student}
    backbone = model.student.backbone.bottom_up
    layer = backbone.layers[2].blocks[0].attn.qkv if "swin" in path else backbone.res4[5].conv2
    assert layer.weight.grad.any()
