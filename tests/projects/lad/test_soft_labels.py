"""Soft labels: the divergence by hand, what counts where, and the student that learns by them."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torchvision.ops import generalized_box_iou_loss

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.views import DetectorView
from kd_d2.projects.lad import FocalSoftLabel, focal_kl
from kd_d2.projects.lad import soft_labels as module

SHAPES = {"p3": ShapeSpec(channels=4, stride=8)}
A = 96  # locations
SIZES = [(60, 90), (64, 80)]
# with a third number, and one location a cell
DETECTORS = ["PAA", "ATSS", "FCOS", "DDOD", "AutoAssign"]


def slow_focal_kl(z, q, gamma):
    p = 1 / (1 + torch.exp(-z))
    kl = q * torch.log(q / p) + (1 - q) * torch.log((1 - q) / (1 - p))
    return ((q - p) ** 2 + 1e-6) ** (gamma / 2) * kl


@pytest.mark.parametrize("gamma,value", [(0.5, 0.1055709), (0.0, 0.1927448)])
def test_worked_numbers(gamma, value):
    loss = focal_kl(torch.tensor(0.0), torch.tensor(4.0).log(), gamma)
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_values_and_gradients_are_those_of_the_formula(gamma):
    student = torch.randn(200, dtype=torch.float64).mul(2).requires_grad_()
    teacher = torch.randn(200, dtype=torch.float64) * 2
    expected = slow_focal_kl(student, teacher.sigmoid(), gamma)
    (wanted,) = torch.autograd.grad(expected.sum(), student)
    loss = focal_kl(student, teacher, gamma)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_no_logit_is_too_large():
    logits = torch.tensor([-500.0, -90, 0, 90, 500], requires_grad=True)
    loss = focal_kl(logits[:, None], logits.detach())
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    assert loss.diagonal().eq(0).all() and loss[0, 4].item() == pytest.approx(500)
    assert focal_kl(logits.half(), -logits.half()).dtype == torch.float32


def test_the_teacher_has_no_gradient():
    teacher = torch.zeros(3, requires_grad=True)
    assert focal_kl(teacher, teacher.clone()).sum().grad_fn is not None
    student = torch.ones(3, requires_grad=True)
    focal_kl(student, teacher).sum().backward()
    assert teacher.grad is None and student.grad is not None


def predictions(seed, quality=True):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, A, 2, generator=generator) * 60 - 10
    size = torch.rand(2, A, 2, generator=generator) * 60 + 4
    return DensePredictions(
        logits=torch.randn(2, A, 3, generator=generator).requires_grad_(),
        boxes=torch.cat((corner, corner + size), dim=-1).requires_grad_(),
        points=torch.rand(A, 2, generator=generator) * 64,
        strides=torch.full((A,), 8.0),
        valid=torch.rand(2, A, generator=generator) > 0.2,
        sizes=[(8, 12)],
        quality=torch.randn(2, A, generator=generator).requires_grad_() if quality else None,
    )


def view(decoded):
    images = ImageList(torch.zeros(2, 3, 64, 96), SIZES)
    return DetectorView(images, {"p3": torch.zeros(2, 4, 8, 12)}, decoded=decoded)


def objects(*counts):
    gt = []
    for i, (n, size) in enumerate(zip(counts, SIZES, strict=True)):
        corner = torch.tensor([[3.0 + 7 * k + i, 5.0 + 4 * k] for k in range(n)]).reshape(n, 2)
        x = Instances(size, gt_boxes=Boxes(torch.cat((corner, corner + 30), dim=1)))
        x.gt_classes = torch.zeros(n, dtype=torch.long)
        gt.append(x)
    return gt


def head(**settings):
    return FocalSoftLabel(student_shapes=SHAPES, teacher_shapes=SHAPES, **settings)


def slow_losses(own, others, gt, min_iou, quality):
    """One location after the other."""
    cls = box = iou_loss = total = 0.0
    for i, x in enumerate(gt):
        h, w = SIZES[i]
        limit = torch.tensor([w, h, w, h])
        for a in range(A):
            z, q = own.logits[i, a].detach(), others.logits[i, a].detach().sigmoid()
            cls += slow_focal_kl(z, q, 0.5).sum()
            target = torch.minimum(others.boxes[i, a].detach().clamp(min=0), limit)
            m = pairwise_iou(Boxes(target[None]), x.gt_boxes).max() if len(x) else 0.0
            if not (own.valid[i, a] and others.valid[i, a] and m > min_iou):
                continue
            total += m
            mine = torch.minimum(own.boxes[i, a].detach().clamp(min=0), limit)
            box += m * generalized_box_iou_loss(mine, target)
            if quality:
                q = others.quality[i, a].detach().sigmoid()
                iou_loss += slow_focal_kl(own.quality[i, a].detach(), q, 0.5)
    total = max(float(total), 1.0)
    return cls / total, box / total, iou_loss / total, total


@pytest.mark.parametrize("min_iou", [0.1, 0.5])
@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
@pytest.mark.parametrize("quality", [True, False])
def test_the_losses(min_iou, counts, quality):
    own, others, gt = predictions(0, quality), predictions(1, quality), objects(*counts)
    losses = head(min_iou=min_iou, cls_weight=2.0)(view(own), view(others), gt)
    cls, box, iou_loss, total = slow_losses(own, others, gt, min_iou, quality)
    assert total > 1 or counts == (0, 0)
    assert losses["loss_soft_cls"].item() == pytest.approx(float(2 * cls), rel=1e-4)
    assert losses["loss_soft_box"].item() == pytest.approx(float(1.3 * box), rel=1e-4, abs=1e-6)
    assert ("loss_soft_iou" in losses) == quality
    if quality:
        expected = pytest.approx(float(10 * iou_loss), rel=1e-4, abs=1e-6)
        assert losses["loss_soft_iou"].item() == expected
    sum(losses.values()).backward()
    gradients = [x.grad for x in (own.logits, own.boxes, own.quality) if x is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert others.logits.grad is None and others.boxes.grad is None


def test_objects_in_several_passes_are_the_same(monkeypatch):
    own, others, gt = predictions(0), predictions(1), objects(3, 2)
    at_once = head()(view(own), view(others), gt)
    monkeypatch.setattr(module, "_MOST_PAIRS", 2 * A)
    for name, loss in head()(view(own), view(others), gt).items():
        assert loss == at_once[name]


@pytest.fixture
def soft_cfg(frozen_cfg):
    def make(student, teacher=None, **kd):
        cfg = frozen_cfg(student, teacher or student)
        cfg.MODEL.KD.HEADS = ["FocalSoftLabel"]
        for key, value in kd.items():
            cfg.MODEL.KD[key] = value
        return cfg

    return make


@pytest.mark.parametrize("arch", [*DETECTORS, "GFL", "RetinaNet"])
def test_alone_it_trains_all_of_a_student(arch, soft_cfg, build, random_batch, storage):
    model = build(soft_cfg(arch, LABEL_LOSSES=False)).train()
    losses = model(random_batch())
    names = {"loss_soft_cls", "loss_soft_box"}
    names |= {"loss_soft_iou"} if arch in DETECTORS else set()
    assert losses.keys() == names
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # of AutoAssign's prior no teacher knows
    assert all("center_prior" in n for n in missing) and (arch == "AutoAssign") == bool(missing)


@pytest.mark.parametrize("objects", [(0, 1), (0, 0)])
def test_solad_and_images_without_objects(objects, soft_cfg, build, random_batch, storage):
    model = build(soft_cfg("PAA", ASSIGN_BY="teacher")).train()
    losses = model(random_batch(objects=objects))
    names = {"loss_cls", "loss_box_reg", "loss_iou"}
    assert losses.keys() == names | {"loss_soft_cls", "loss_soft_box", "loss_soft_iou"}
    sum(losses.values()).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)


def test_a_teacher_with_the_students_weights_has_nothing_to_say(
    soft_cfg, build, random_batch, storage
):
    model = build(soft_cfg("PAA", LABEL_LOSSES=False)).train()
    model.student.load_state_dict(model.teacher.detector.state_dict())
    for loss in model(random_batch()).values():
        assert abs(loss.item()) < 1e-5


@pytest.mark.parametrize("near", ["teacher", "anchor"])
def test_whose_iou_counts(near, soft_cfg, build, random_batch, storage):
    cfg = soft_cfg("PAA", LABEL_LOSSES=False)
    cfg.MODEL.KD.FOCALSOFTLABEL.NEAR = near
    model = build(cfg).train()
    with torch.no_grad():  # the teacher's boxes are now far from all objects
        model.teacher.detector.head.bbox_pred.bias.copy_(torch.tensor([900.0, 900, 0, 0]))
    assert (model(random_batch())["loss_soft_iou"] > 0) == (near == "anchor")


def test_heads_alone_need_one_that_compares_predictions(soft_cfg, build):
    cfg = soft_cfg("PAA", LABEL_LOSSES=False)
    cfg.MODEL.KD.HEADS = ["PKD"]
    with pytest.raises(ValueError, match="LABEL_LOSSES is False, and no head"):
        build(cfg)


@pytest.mark.parametrize(
    "student,teacher,reason",
    [("RetinaNet", "PAA", "has 6 in each cell"), ("FasterRCNN", "PAA", "does not serve here")],
)
def test_other_locations_are_refused(student, teacher, reason, soft_cfg, build):
    with pytest.raises(ValueError, match=reason):
        build(soft_cfg(student, teacher))
