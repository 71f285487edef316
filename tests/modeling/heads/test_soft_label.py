"""Soft labels against loops over locations and classes, and which pairs have them."""

import math
from dataclasses import replace

import pytest
import torch
from head_cases import shapes
from prediction_cases import GT, SIZES, decoded, detector, distiller, some_labels, step, view

from kd_d2 import get_kd_cfg
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.modeling.distill_heads import build_distill_head
from kd_d2.modeling.heads import HEAD_VALUES, SoftLabel
from kd_d2.modeling.heads.locations import assigned_classes, best_probability, count_positives
from kd_d2.modeling.heads.soft_label import soft_label_loss


def make(**kwargs):
    return SoftLabel(student_shapes=shapes(), teacher_shapes=shapes(), **kwargs)


def loss_of(head, student, teacher, labels):
    return head(view(student, labels), view(teacher), GT)["loss_soft_label"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_loss(student, teacher, beta):
    """Of lists of logits of one location."""
    total = 0.0
    for x, y in zip(student, teacher, strict=True):
        p, q = sigmoid(x), sigmoid(y)
        total += abs(q - p) ** beta * -(q * math.log(p) + (1 - q) * math.log(1 - p))
    return total


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_equals_a_loop_over_classes(beta):
    x, y = torch.randn(2, 5, 3)
    expected = [slow_loss(a, b, beta) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    torch.testing.assert_close(soft_label_loss(x, y, beta), torch.tensor(expected))


def test_by_hand():
    # 1/2 against 3/4: 1/4 of ln 2, and against 1/4 the same
    loss = soft_label_loss(torch.zeros(2), torch.tensor([3.0, 1 / 3]).log())
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_learns_nothing_from_an_equal(beta):
    x = torch.randn(4, 3, requires_grad=True)
    loss = soft_label_loss(x, x.detach(), beta)
    loss.sum().backward()
    assert not loss.any() and not x.grad.any()
    assert (soft_label_loss(x + 0.1, x.detach(), beta) > 0).all()


def test_head_divides_by_the_positives():
    x, y, labels = decoded(), decoded(seed=1), some_labels()
    expected = soft_label_loss(x.logits, y.logits, 2.0).sum()
    positives = ((labels >= 0) & (labels < 3)).sum()
    loss = loss_of(make(weight=3.0, beta=2.0), x, y, labels)
    torch.testing.assert_close(loss, 3 * expected / positives)
    assert not list(make().parameters())


def test_locations_that_one_side_does_not_have_say_nothing():
    x, y, labels = decoded(), decoded(seed=1), some_labels()
    x.valid[0, 3] = y.valid[1, 5] = False
    expected = loss_of(make(), x, y, labels)
    x.logits[0, 3], y.logits[1, 5] = 50.0, float("inf")
    torch.testing.assert_close(loss_of(make(), x, y, labels), expected)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    x, y, labels = decoded(), decoded(seed=1), some_labels()
    twice = [
        replace(s, logits=s.logits.repeat(2, 1, 1), valid=s.valid.repeat(2, 1)) for s in (x, y)
    ]
    once = loss_of(make(), x, y, labels)
    torch.testing.assert_close(loss_of(make(), *twice, labels.repeat(2, 1)), once)


def test_a_batch_without_objects_counts_one():
    x, y = decoded(grad=True), decoded(seed=1)
    background = torch.full_like(some_labels(), 3)
    loss = loss_of(make(), x, y, background)
    torch.testing.assert_close(loss, soft_label_loss(x.logits, y.logits).sum())
    loss.backward()
    assert x.logits.grad.isfinite().all() and x.logits.grad.any()


def test_a_detector_without_assignment_counts_what_the_teacher_sees():
    x, y = decoded(), decoded(seed=1)
    y.valid[0, :5] = False
    expected = sum(
        max(sigmoid(v) for v in logits)
        for logits, valid in zip(y.logits.flatten(0, 1).tolist(), y.valid.flatten(), strict=True)
        if valid
    )
    assert count_positives(view(x), y).item() == pytest.approx(expected, rel=1e-5)
    assert best_probability(y)[0, :5].tolist() == [0.0] * 5
    torch.testing.assert_close(
        loss_of(make(), x, y, None) * expected,
        soft_label_loss(x.logits, y.logits).where(y.valid, 0.0).sum(),
    )


def test_assigned_classes_leave_out_background_and_ignored():
    labels = torch.tensor([[-1, 0, 2, 3]])
    x = decoded(images=1, sizes=[(1, 4)])
    classes, positive = assigned_classes(view(x, labels))
    assert classes.tolist() == [[0, 0, 2, 2]]
    assert positive.tolist() == [[False, True, True, False]]


def test_the_teacher_is_a_constant():
    x, y = decoded(grad=True), decoded(seed=1, grad=True)
    loss_of(make(), x, y, some_labels()).backward()
    assert x.logits.grad.any() and y.logits.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """Logits whose probabilities float16 rounds to 1."""
    half = [replace(d, logits=d.logits.to(dtype)) for d in (decoded(scale=8.0), decoded(seed=1))]
    wide = [replace(d, logits=d.logits.float()) for d in half]
    with torch.autocast("cpu", dtype):
        loss = loss_of(make(), *half, some_labels())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(make(), *wide, some_labels()))


def test_unequal_sizes_are_refused_with_both():
    match = r"SoftLabel needs levels of equal size.* are \[\(3, 4\), \(2, 2\)\], the teacher's \["
    with pytest.raises(ValueError, match=match):
        loss_of(make(), decoded(), decoded(sizes=[*SIZES, (1, 1)]), some_labels())


def test_unequal_classes_are_refused_with_the_way_out(monkeypatch):
    student = detector("FCOS")
    monkeypatch.setattr("tiny_models.NUM_CLASSES", 5)
    with pytest.raises(ValueError, match=r"has \d classes, the teacher 5: .*KD.TEACHER.CLASSES"):
        distiller(student, detector("FCOS"), SoftLabel)


def test_unequal_levels_are_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"SoftLabel .*agree in stride.*stride 8.*stride 16"):
        SoftLabel(student_shapes=shapes(strides=(8,)), teacher_shapes=shapes(strides=(16,)))
    wide = SoftLabel(student_shapes=shapes(4), teacher_shapes=shapes(6))  # logits are alike
    assert wide.weight == 1.0


def test_is_built_from_its_keys():
    cfg = get_kd_cfg()
    by_default = build_distill_head("SoftLabel", cfg, shapes(), shapes())
    assert (by_default.weight, by_default.beta) == (make().weight, make().beta)
    cfg.MODEL.KD.SOFTLABEL.WEIGHT, cfg.MODEL.KD.SOFTLABEL.BETA = 3.0, 2.0
    head = build_distill_head("SoftLabel", cfg, shapes(), shapes())
    assert (head.weight, head.beta) == (3.0, 2.0)
    check_values(cfg, HEAD_VALUES)
    cfg.MODEL.KD.SOFTLABEL.BETA = 0.5  # its gradient would not be finite where both agree
    with pytest.raises(ConfigError, match="^MODEL.KD.SOFTLABEL.BETA is 0.5"):
        check_values(cfg, HEAD_VALUES)


PAIRS = [("FCOS", "FCOS"), ("RetinaNet", "RetinaNet"), ("ATSS", "GFL"), ("AutoAssign", "DDOD")]


@pytest.mark.parametrize("student, teacher", PAIRS)
def test_steps(student, teacher, random_batch):
    model = distiller(detector(student), detector(teacher, seed=1), SoftLabel)
    for count in ((2, 0), (0, 0)):
        (name,) = losses = step(model, random_batch(objects=count))
        assert name == "loss_soft_label" and losses[name] > 0
        assert model.student.head.cls_subnet[0].weight.grad.any()
        assert not any(p.grad is not None for p in model.student.head.bbox_pred.parameters())


@pytest.mark.parametrize("student, teacher", [("FasterRCNN", "FasterRCNN"), ("FCOS", "FasterRCNN")])
def test_two_stage_detectors_are_refused(student, teacher, frozen_cfg, build):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = ["SoftLabel"]
    with pytest.raises(ValueError, match="GeneralizedRCNN has none; take a dense detector"):
        build(cfg)


def test_another_number_of_anchors_is_refused():
    with pytest.raises(ValueError, match=r"student has 6 in each cell, the teacher 1: take"):
        distiller(detector("RetinaNet"), detector("FCOS"), SoftLabel)
