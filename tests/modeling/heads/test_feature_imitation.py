"""Facts that hold for every head that imitates features."""

import pytest
import torch
from head_cases import features, image, objects, shapes, view
from torch import nn

from kd_d2 import get_kd_cfg
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.modeling import FrozenTeacher, FrozenTeacherDistiller, build_stages
from kd_d2.modeling.distill_heads import build_distill_head
from kd_d2.modeling.heads import CWD, FGD, FGFI, HEAD_VALUES, MGD, PKD
from kd_d2.modeling.heads.adapters import FeatureImitation

HEADS = [CWD, FGD, FGFI, MGD, PKD]
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)


def make(head, student=None, teacher=None, **kwargs):
    """Without an adapter, and without chance: no cell is hidden."""
    kwargs = {"adapter": False, **kwargs}
    if head is MGD:
        kwargs["mask_share"] = 0.0
    student = student or shapes()
    return head(student_shapes=student, teacher_shapes=teacher or student, **kwargs)


def identity_(conv):
    """Makes a 3x3 convolution give its input."""
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:, :, 1, 1] = torch.eye(len(conv.weight))


def total(head, x, y, gt):
    return sum(head(view(x), view(y), gt).values())


@every_head
def test_learns_nothing_from_an_equal(head):
    x = {name: v.abs() for name, v in features(shapes()).items()}
    head = make(head)
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            identity_(module)  # MGD's minimum: what it rebuilds is what it sees
    assert total(head, x, x, objects()).item() == pytest.approx(0, abs=1e-6)
    assert total(head, x, features(shapes(), seed=1), objects()).item() > 1e-6


@every_head
def test_duplicating_the_batch_leaves_the_loss_unchanged(head):
    head = make(head)
    x, y = features(shapes()), features(shapes(), seed=1)
    twice = [{k: torch.cat([v, v]) for k, v in side.items()} for side in (x, y)]
    once = total(head, x, y, objects()).item()
    assert total(head, *twice, objects() + objects()).item() == pytest.approx(once, rel=1e-4)


@every_head
@pytest.mark.parametrize("gt", [objects(), [objects()[0], image()], [image(), image()]])
def test_every_parameter_and_the_student_get_a_gradient_and_the_teacher_none(head, gt):
    student, teacher = shapes(channels=4), shapes(channels=6)
    head = make(head, student, teacher, adapter=True)
    x, y = features(student), features(teacher, seed=1)
    for v in y.values():
        v.requires_grad_()
    losses = head(view(x), view(y), gt)
    assert losses.keys() == head(view(x), view(y), objects()).keys()
    sum(losses.values()).backward()
    learners = [*x.values(), *head.parameters()]
    assert all(v.grad is not None and v.grad.isfinite().all() for v in learners)
    assert all(v.grad is None for v in y.values())
    if not isinstance(head, FGFI) or any(map(len, gt)):
        assert all(v.grad.abs().sum() > 0 for v in (*x.values(), head.adapter.weight))


@every_head
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(head, dtype):
    """Magnitudes whose squares float16 does not know."""
    x, y = ({k: 300 * v for k, v in features(shapes(), seed=i).items()} for i in range(2))
    half = [{k: v.to(dtype) for k, v in side.items()} for side in (x, y)]
    wide = [{k: v.float() for k, v in side.items()} for side in half]
    head = make(head)
    if isinstance(head, MGD):  # its network runs in the dtype of autocast
        head.generators = nn.ModuleList(nn.Identity() for _ in head.levels)
    if isinstance(head, FGD):
        for block in (*head.student_relations, *head.teacher_relations):
            nn.init.normal_(block.transform[-1].weight)
    with torch.autocast("cpu", dtype):
        losses = head(view(half[0]), view(half[1]), objects())
    for name, expected in head(view(wide[0]), view(wide[1]), objects()).items():
        assert losses[name].dtype == torch.float32 and losses[name].isfinite()
        torch.testing.assert_close(losses[name], expected)


@every_head
def test_a_step_in_mixed_precision(head):
    student, teacher = shapes(channels=4), shapes(channels=6)
    head = make(head, student, teacher, adapter=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head(view(features(student)), view(features(teacher, seed=1)), objects())
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@every_head
def test_levels_meet_by_stride(head):
    student, teacher = shapes(strides=(8, 16, 32)), shapes(strides=(4, 8, 16))
    x, y = features(student), features(teacher, seed=1)
    torch.manual_seed(0)
    pyramids = make(head, student, teacher)
    assert pyramids.levels == [("p0", "p1"), ("p1", "p2")] and pyramids.strides == [8, 16]
    torch.manual_seed(0)
    same = make(head)
    expected = total(same, x, {"p0": y["p1"], "p1": y["p2"]}, objects())
    torch.testing.assert_close(total(pyramids, x, y, objects()), expected)


@every_head
def test_unequal_padding_is_cropped_at_the_common_corner(head):
    x, y = features(shapes()), features(shapes(), seed=1)
    head = make(head)
    expected = total(head, x, y, objects())
    padded = [
        {k: nn.functional.pad(v, pad, value=9.0) for k, v in side.items()}
        for side, pad in ((x, (0, 0, 0, 2)), (y, (0, 1)))
    ]
    torch.testing.assert_close(total(head, *padded, objects()), expected)


@every_head
def test_unequal_channels_name_both_shapes_and_the_way_out(head):
    name = head.__name__
    match = (
        rf"{name} .*p0 \(4 channels, stride 8\).*p0 \(6 channels, stride 8\).*{name}.ADAPTER True"
    )
    with pytest.raises(ValueError, match=match):
        make(head, shapes(4), shapes(6))


def test_one_adapter_needs_equal_channels_on_all_levels():
    mixed = shapes(4, (8,)) | {"p1": shapes(6)["p1"]}
    assert not list(make(PKD, mixed).parameters())
    assert [len(g[0].weight) for g in make(MGD, mixed).generators] == [4, 6]
    with pytest.raises(ValueError, match=r"one adapter for all levels .*p1 \(6 channels"):
        make(PKD, mixed, adapter=True)


@every_head
def test_is_built_from_its_keys(head):
    cfg = get_kd_cfg()
    node = cfg.MODEL.KD[head.__name__]
    by_default = build_distill_head(head.__name__, cfg, shapes(), shapes())
    assert isinstance(by_default, head) and isinstance(by_default, FeatureImitation)
    plain = head(student_shapes=shapes(), teacher_shapes=shapes())
    settings = [
        {k: v for k, v in x.__dict__.items() if not k.startswith("_")} for x in (by_default, plain)
    ]
    assert settings[0] == settings[1]  # the keys' defaults are the class's
    assert by_default.state_dict().keys() == plain.state_dict().keys()
    node.ADAPTER = not node.ADAPTER
    changed = build_distill_head(head.__name__, cfg, shapes(), shapes())
    assert isinstance(changed.adapter, nn.Conv2d) == node.ADAPTER


@pytest.mark.parametrize(
    "key, value",
    [
        ("CWD.TEMPERATURE", 0),
        ("FGD.GLOBAL_WEIGHT", -1.0),
        ("FGFI.SIZES", []),
        ("FGFI.ASPECT_RATIOS", [0.0]),
        ("FGFI.THRESHOLD", 1.0),
        ("MGD.MASK_SHARE", 1.5),
        ("PKD.ADAPTER", None),
    ],
)
def test_wrong_values_are_refused_by_their_keys(key, value):
    cfg = get_kd_cfg()
    check_values(cfg, HEAD_VALUES)
    head, name = key.split(".")
    cfg.MODEL.KD[head][name] = value
    with pytest.raises(ConfigError, match=f"^MODEL.KD.{key} is "):
        check_values(cfg, HEAD_VALUES)


@pytest.mark.parametrize("count", [(0, 2), (0, 0)])
def test_a_step_of_all_heads_with_a_frozen_teacher(tiny_cfg, build, random_batch, storage, count):
    student, teacher = build(tiny_cfg("RetinaNet")), build(tiny_cfg("FasterRCNN", fpn_channels=16))
    teacher = FrozenTeacher(detector=teacher)
    student_shapes = build_stages(student).feature_shapes
    cfg = get_kd_cfg()
    for head in HEADS:
        cfg.MODEL.KD[head.__name__].ADAPTER = True
    heads = {
        head.__name__: build_distill_head(
            head.__name__, cfg, student_shapes, teacher.feature_shapes
        )
        for head in HEADS
    }
    model = FrozenTeacherDistiller(student=student, teacher=teacher, heads=heads).train()
    losses = model(random_batch(objects=count))
    own = {"loss_cls", "loss_box_reg"}
    assert losses.keys() - own == {
        f"loss_{name}" for name in ("cwd", "fgd_focal", "fgd_global", "fgfi", "mgd", "pkd")
    }
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    learners = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learners)
