"""A student that begins with its teacher's neck and head."""

import pytest
import torch
from tiny_models import build, tiny_cfg

from kd_d2.modeling.inheritance import inherit, parts_of


def pair(student="FCOS", teacher="FCOS", fpn_channels=32):
    torch.manual_seed(0)
    return build(tiny_cfg(student)), build(tiny_cfg(teacher, fpn_channels=fpn_channels))


def equal_parts(student, teacher):
    theirs = teacher.state_dict()
    return {
        name
        for name, value in student.state_dict().items()
        if name in theirs and torch.equal(value, theirs[name])
    }


@pytest.mark.parametrize("parts", [["neck"], ["head"], ["neck", "head"]])
def test_exactly_the_parts_are_copied(parts):
    student, teacher = pair()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    copied = inherit(student, teacher, parts)
    trained = dict(student.named_parameters())
    assert set(copied) == {name for name in trained if parts_of(name) & set(parts)}
    assert set(copied) <= equal_parts(student, teacher)
    for name, value in student.state_dict().items():
        if name not in copied:
            assert torch.equal(value, before[name])


def test_the_copy_is_the_students_own():
    student, teacher = pair()
    inherit(student, teacher, ["head"])
    with torch.no_grad():
        student.head.cls_score.weight.zero_()
    assert teacher.head.cls_score.weight.abs().sum() > 0


def test_what_does_not_fit_stays_and_is_named(caplog):
    student, teacher = pair("ATSS", "FCOS")
    with caplog.at_level("INFO"):
        copied = inherit(student, teacher, ["head"])
    assert "head.cls_score.weight" in copied and "head.quality.weight" not in copied
    assert "head.quality.weight" in caplog.text
    with pytest.raises(ValueError, match="nothing of these parts"):
        inherit(*pair(fpn_channels=64), ["neck"])


def test_counters_are_not_inherited():
    student, teacher = pair("DDOD", "DDOD")
    counts = {"cls_positives", "box_positives"}
    for name in counts:
        teacher.get_buffer(name).fill_(5)
    assert not counts & set(inherit(student, teacher, ["head"]))
    assert not any(student.get_buffer(name).any() for name in counts)


def test_statistics_of_norms_are_inherited():
    cfg = tiny_cfg("FCOS")
    cfg.MODEL.FCOS.NORM = "BN"
    student, teacher = build(cfg), build(cfg)
    statistics = [n for n, _ in teacher.named_buffers() if n.startswith("head") and "running" in n]
    for name in statistics:
        teacher.get_buffer(name).fill_(3.0)
    copied = inherit(student, teacher, ["head"])
    assert statistics and set(statistics) <= set(copied)
    assert all((student.get_buffer(name) == 3).all() for name in statistics)


def test_frozen_norms_are_inherited_whole():
    cfg = tiny_cfg("FCOS")
    cfg.MODEL.FPN.NORM = "FrozenBN"
    student, teacher = build(cfg), build(cfg)
    kept = ("weight", "bias", "running_mean", "running_var")
    for number, name in enumerate(kept, 2):
        teacher.get_buffer(f"backbone.fpn_lateral3.norm.{name}").fill_(number)
    inherit(student, teacher, ["neck"])
    norm = student.backbone.fpn_lateral3.norm
    assert [getattr(norm, name).unique().tolist() for name in kept] == [[2], [3], [4], [5]]


@pytest.mark.parametrize("pair_of", [("RetinaNet", "FCOS"), ("FCOS", "RetinaNet")])
def test_layers_of_another_kind_and_what_follows_stay(pair_of):
    """Towers of [conv, ReLU] and [conv, norm, ReLU] have names and shapes in common by accident."""
    student, teacher = pair(*pair_of)
    copied = inherit(student, teacher, ["head"])
    in_towers = {name for name in copied if "subnet" in name}
    assert in_towers == {
        f"head.{tower}_subnet.0.{name}" for tower in ("cls", "bbox") for name in ("weight", "bias")
    }


def box_heads(tiny_cfg, build, **student):
    cfg = tiny_cfg("FasterRCNN")
    teacher = build(cfg)
    for key, value in student.items():
        cfg.MODEL.ROI_BOX_HEAD[key] = value
    return build(cfg), teacher


def test_a_box_head_alone(tiny_cfg, build):
    student, teacher = box_heads(tiny_cfg, build)
    before = student.proposal_generator.rpn_head.conv.weight.clone()
    copied = inherit(student, teacher, ["box_head"])
    assert {parts for name in copied for parts in parts_of(name)} == {"head", "box_head"}
    assert torch.equal(
        student.roi_heads.box_predictor.bbox_pred.weight,
        teacher.roi_heads.box_predictor.bbox_pred.weight,
    )
    assert torch.equal(student.proposal_generator.rpn_head.conv.weight, before)
    assert all("proposal_generator" in name for name in inherit(student, teacher, ["rpn"]))


@pytest.mark.parametrize(
    "key,value,words",
    [
        ("FC_DIM", 16, "has box_head, which is copied whole.*FC_DIM"),
        ("CLS_AGNOSTIC_BBOX_REG", True, "has box_head, which is copied whole"),
        ("POOLER_RESOLUTION", 5, "has box_head, which is copied whole"),
        ("BBOX_REG_WEIGHTS", (20.0, 20.0, 10.0, 10.0), "boxes in units of .10.0, 10.0, 5.0, 5.0."),
    ],
)
def test_a_box_head_that_does_not_fit_whole(key, value, words, tiny_cfg, build):
    student, teacher = box_heads(tiny_cfg, build, **{key: value})
    with pytest.raises(ValueError, match=words):
        inherit(student, teacher, ["box_head"])


def test_units_of_a_dense_detector_s_boxes(tiny_cfg, build):
    cfg = tiny_cfg()
    teacher = build(cfg)
    cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
    student = build(cfg)
    inherit(student, teacher, ["neck"])
    with pytest.raises(ValueError, match="in units of .*the detector"):
        inherit(student, teacher, ["head"])
