"""Every config: safe YAML, true to the paper's table, buildable; some take a training step."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from kd_d2 import get_kd_cfg
from kd_d2.config_check import check_config
from kd_d2.modeling import build_stages
from kd_d2.modeling.distill_heads import build_distill_head
from kd_d2.student_config import student_config
from kd_d2.teacher_config import load_teacher_cfg

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ALL = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
RUNS = [p for p in ALL if not Path(p).name.startswith("Base-") and not p.startswith("backbones/")]
QUICKSTART = [p for p in RUNS if p.startswith("quickstart/")]
LGD = [p for p in RUNS if p.startswith("LGD/")]
PKD = [p for p in RUNS if p.startswith("PKD/")]

# Paper's table: context box, POST_NONDISTILL
LGD_ROWS = {
    "retinanet_r50": (True, 0),
    "retinanet_r101": (True, 0),
    "retinanet_r101_dcnv2": (True, 0),
    "retinanet_x101": (True, 50000),
    "fcos_r50": (False, 0),
    "fcos_r101": (True, 0),
    "fcos_r101_dcnv2": (True, 50000),
    "fcos_x101": (True, 50000),
}


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


@pytest.mark.parametrize("path", [p for p in RUNS if "pkd" not in p])
def test_passes_the_check(path):
    check_config(load(path))


@pytest.mark.parametrize("path", RUNS)
def test_number_of_classes_fits_the_data(path):
    cfg = load(path)
    student = student_config(cfg)
    node = student.MODEL[student.MODEL.META_ARCHITECTURE.upper()]
    num_classes = len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    assert num_classes == node.NUM_CLASSES


# ---- COCO


def test_retinanet_is_detectron2s():
    stock = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml", trained=False)
    ours = load("baselines/retinanet_r50.yaml")
    for key, value in stock.MODEL.items():
        if key == "ANCHOR_GENERATOR":
            for a, b in zip(value.pop("SIZES"), ours.MODEL[key].pop("SIZES"), strict=True):
                assert a == pytest.approx(b, rel=1e-15)
        if key == "FPN":
            ours.MODEL.FPN.pop("TOP_BLOCK_IN_FEATURE")
        if key not in ("WEIGHTS", "DEVICE"):
            assert ours.MODEL[key] == value, key
    assert stock.INPUT == ours.INPUT and stock.DATASETS == ours.DATASETS


@pytest.mark.parametrize("path", LGD)
def test_row_of_the_paper(path):
    cfg = load(path)
    name = Path(path).stem
    kd, lgd, solver = cfg.MODEL.KD, cfg.MODEL.KD.LGD, cfg.SOLVER
    context_box, post_nondistill = LGD_ROWS[name]
    assert (context_box, post_nondistill) == (lgd.ADD_CONTEXT_BOX, lgd.POST_NONDISTILL)
    assert (lgd.PRE_NONDISTILL, kd.FREEZE_BACKBONE, lgd.LAMBDA) == (30000, 20000, 1.0)
    assert (lgd.INTERACT_PATTERN, lgd.NUM_HEADS, lgd.DETACH_APPEARANCE_EMBED) == (
        "stuGuided",
        8,
        False,
    )
    assert kd.EVAL_TEACHER and kd.HEADS == ["InstructiveFeatures"]
    assert kd.STUDENT.lower() == name.split("_")[0]
    assert (solver.MAX_ITER, solver.STEPS, solver.IMS_PER_BATCH) == (180000, (120000, 160000), 16)
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM) == ("SGD", 0.01, 0.9)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-4, 1e-4)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (1000, 0.001)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "value", 1.0)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == (1333, 800)


def test_every_row_is_there():
    rows = set(LGD_ROWS)
    assert rows == {Path(p).stem for p in LGD}
    assert rows == {Path(p).stem for p in RUNS if p.startswith("baselines/")}


@pytest.mark.parametrize("path", LGD)
def test_baseline_differs_in_the_distillation_only(path):
    student, plain = student_config(load(path)), load(path.replace("LGD/", "baselines/"))
    for cfg in (student, plain):
        cfg.MODEL.pop("KD")
        cfg.pop("OUTPUT_DIR")
    assert student == plain


@pytest.mark.parametrize("path", LGD)
def test_lgd_builds(path):
    model = build_on_meta(load(path))
    student = model.student
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"student", "teacher", "heads"}
    backbone = student.backbone.bottom_up
    deformable = [n for n, _ in backbone.named_parameters() if n.endswith("conv2_offset.weight")]
    dcn = "dcnv2" in path or "x101" in path
    # every block of res3, res4 and res5 of a 101-layer network
    assert len(deformable) == (4 + 23 + 3 if dcn else 0)
    groups = 32 if "x101" in path else 1
    assert {block.conv2.groups for block in backbone.res4} == {groups}
    assert all(p.requires_grad for p in backbone.res3.parameters())
    assert not any(p.requires_grad for p in backbone.res2.parameters())


@pytest.mark.parametrize(
    "path, student",
    [("LGD/retinanet_r50.yaml", 37_915_572), ("LGD/fcos_r50.yaml", 36_373_018)],
)
def test_parameter_counts_of_the_paper(path, student):
    model = build_on_meta(load(path))
    assert num_parameters(model.student) == student
    assert num_parameters(model.teacher) == 8_304_336
    assert num_parameters(model.heads) == 1_770_240


@pytest.mark.parametrize("path", [p for p in RUNS if p.startswith("baselines/")])
def test_baselines_build(path):
    model = build_on_meta(load(path))
    assert type(model).__name__.lower() == Path(path).stem.split("_")[0]


@pytest.mark.parametrize("path", PKD)
def test_pkd_names_a_teacher_of_the_zoo(path):
    cfg = load(path)
    node = cfg.MODEL.KD.TEACHER
    assert node.WEIGHTS == "" and model_zoo.get_checkpoint_url(node.CONFIG_FILE)
    check_config(cfg)
    student = student_config(cfg)
    assert type(build_on_meta(student)).__name__ == "RetinaNet"


# ---- steps


def batch_of(size, num_classes):
    """An image with objects, and one without."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for boxes in ([[4, 4, size // 2, size // 3], [size // 4, 8, size - 8, size - 4]], []):
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.arange(len(boxes)) % num_classes
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


@pytest.mark.parametrize("path", [p for p in QUICKSTART if "pkd" not in p])
def test_quickstart_takes_a_step(path):
    cfg = load(path)
    model, losses = take_a_step(cfg, batch_of(96, 6))
    assert ("loss_cls.tea" in losses) == ("lgd" in path)
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


@pytest.mark.parametrize("path", PKD)
def test_pkd_pairs_the_levels_of_student_and_teacher(path):
    cfg = load(path)
    student = build_stages(build_on_meta(student_config(cfg).clone()))
    teacher = build_stages(build_on_meta(load_teacher_cfg(cfg).clone()))
    head = build_distill_head("PKD", cfg, student.feature_shapes, teacher.feature_shapes)
    assert len(head.levels) >= 4


def test_fcos_x101_takes_a_step():
    """The largest model at the smallest size: grouped deformable blocks, every level, on a CPU."""
    cfg = load("LGD/fcos_x101.yaml")
    # The published phase freezes the raw backbone at first; here all of it must train.
    cfg.MODEL.KD.FREEZE_BACKBONE = None
    model, losses = take_a_step(cfg, batch_of(64, 80))
    assert "loss_cls" in losses and "loss_cls.tea" in losses and "loss_centerness.tea" in losses
    assert model.student.backbone.bottom_up.res4[5].conv2.weight.grad.any()
