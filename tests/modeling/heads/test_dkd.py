"""Decoupled distillation against plain distillation and against loops, and where it is refused."""

import math
from dataclasses import replace

import pytest
import torch
from head_cases import shapes
from prediction_cases import GT, decoded, detector, distiller, some_labels, step, view

from kd_d2 import get_kd_cfg
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.modeling.distill_heads import build_distill_head
from kd_d2.modeling.heads import DKD, HEAD_VALUES
from kd_d2.modeling.heads.dkd import dkd_loss


def make(**kwargs):
    return DKD(student_shapes=shapes(), teacher_shapes=shapes(), **kwargs)


def loss_of(head, student, teacher, labels):
    return head(view(student, labels), view(teacher), GT)["loss_dkd"]


def softmax(values):
    exps = [math.exp(v) for v in values]
    return [e / sum(exps) for e in exps]


def kl(teacher, student):
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def slow_loss(student, teacher, right, alpha, beta, t):
    """Of lists of logits of one location."""
    q, p = (softmax([v / t for v in side]) for side in (student, teacher))
    target = kl([p[right], 1 - p[right]], [q[right], 1 - q[right]])
    others = [
        softmax([v / t for k, v in enumerate(side) if k != right]) for side in (teacher, student)
    ]
    return t * t * (alpha * target + beta * kl(*others))


@pytest.mark.parametrize("alpha, beta, t", [(1.0, 0.25, 1.0), (0.5, 8.0, 4.0)])
def test_equals_a_loop(alpha, beta, t):
    x, y = torch.randn(2, 6, 4)
    classes = torch.tensor([0, 1, 2, 3, 0, 2])
    expected = [
        slow_loss(*sides, alpha, beta, t)
        for sides in zip(x.tolist(), y.tolist(), classes.tolist(), strict=True)
    ]
    loss = dkd_loss(x, y, classes, alpha, beta, t)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_with_the_teachers_doubt_as_beta_it_is_plain_distillation():
    """The identity that the paper begins with."""
    x, y = torch.randn(2, 5)
    right = torch.tensor(3)
    p, q = y.softmax(0), x.softmax(0)
    plain = (p * (p / q).log()).sum()
    torch.testing.assert_close(dkd_loss(x, y, right, 1.0, (1 - p[3]).item()), plain)


def test_learns_nothing_from_an_equal():
    x = torch.randn(4, 3, requires_grad=True)
    classes = torch.tensor([0, 1, 2, 1])
    loss = dkd_loss(x, x.detach(), classes)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.grad, torch.zeros(4, 3), atol=1e-6, rtol=0)
    assert (dkd_loss(2 * x, x.detach(), classes) > 1e-3).all()


def test_a_sure_teacher_has_finite_gradients():
    x = torch.tensor([[200.0, 0.0, 1.0], [-200.0, 0.0, 1.0]], requires_grad=True)
    y = torch.tensor([[-200.0, 3.0, 0.0], [200.0, 0.0, 3.0]])
    loss = dkd_loss(x, y, torch.tensor([0, 0]))
    loss.sum().backward()
    assert loss.isfinite().all() and x.grad.isfinite().all() and x.grad.any()


def test_two_classes_have_one_other():
    x, y = torch.randn(2, 3, 2)
    assert not dkd_loss(x, y, torch.tensor([0, 1, 0]), 0.0, 1.0).any()


def test_head_is_the_mean_over_the_positives():
    x, y, labels = decoded(), decoded(seed=1), some_labels()
    settings = {"target_weight": 2.0, "others_weight": 3.0, "temperature": 2.0}
    values = [
        slow_loss(x.logits[i, a].tolist(), y.logits[i, a].tolist(), k, 2.0, 3.0, 2.0)
        for i, row in enumerate(labels.tolist())
        for a, k in enumerate(row)
        if 0 <= k < 3
    ]
    loss = loss_of(make(**settings), x, y, labels)
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert not list(make().parameters())


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    x, y, labels = decoded(), decoded(seed=1), some_labels()
    twice = [
        replace(s, logits=s.logits.repeat(2, 1, 1), valid=s.valid.repeat(2, 1)) for s in (x, y)
    ]
    once = loss_of(make(), x, y, labels)
    torch.testing.assert_close(loss_of(make(), *twice, labels.repeat(2, 1)), once)


def test_a_batch_without_objects_has_zero_gradients():
    x, y = decoded(grad=True), decoded(seed=1, grad=True)
    loss = loss_of(make(), x, y, torch.full_like(some_labels(), 3))
    loss.backward()
    assert loss == 0 and x.logits.grad is not None and not x.logits.grad.any()
    loss_of(make(), x, y, some_labels()).backward()
    assert x.logits.grad.any() and y.logits.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    half = [replace(d, logits=d.logits.to(dtype)) for d in (decoded(scale=8.0), decoded(seed=1))]
    wide = [replace(d, logits=d.logits.float()) for d in half]
    with torch.autocast("cpu", dtype):
        loss = loss_of(make(), *half, some_labels())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(make(), *wide, some_labels()))


def test_one_class_and_no_assignment_are_refused_with_the_way_out(monkeypatch):
    with pytest.raises(ValueError, match="assigns none: take SoftLabel"):
        distiller(detector("AutoAssign"), detector("FCOS"), DKD)
    monkeypatch.setattr("tiny_models.NUM_CLASSES", 1)
    with pytest.raises(ValueError, match="there is only one: take SoftLabel"):
        distiller(detector("FCOS"), detector("FCOS"), DKD)


def test_is_built_from_its_keys():
    cfg = get_kd_cfg()
    by_default = build_distill_head("DKD", cfg, shapes(), shapes())
    names = ("target_weight", "others_weight", "temperature")
    assert [getattr(by_default, n) for n in names] == [getattr(make(), n) for n in names]
    cfg.MODEL.KD.DKD.OTHERS_WEIGHT = 8.0
    assert build_distill_head("DKD", cfg, shapes(), shapes()).others_weight == 8.0
    cfg.MODEL.KD.DKD.TEMPERATURE = 0.0
    with pytest.raises(ConfigError, match="^MODEL.KD.DKD.TEMPERATURE is 0.0"):
        check_values(cfg, HEAD_VALUES)


@pytest.mark.parametrize("student, teacher", [("FCOS", "ATSS"), ("RetinaNet", "RetinaNet")])
def test_steps(student, teacher, random_batch):
    model = distiller(detector(student), detector(teacher, seed=1), DKD)
    for count in ((2, 0), (0, 0)):
        (name,) = losses = step(model, random_batch(objects=count))
        assert name == "loss_dkd" and (losses[name] > 0) == any(count)
        gradient = model.student.head.cls_score.weight.grad
        assert gradient is not None and gradient.any() == any(count)
