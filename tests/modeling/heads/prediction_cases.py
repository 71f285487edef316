"""Predictions, assignments and whole distillers for the tests of the prediction-imitation heads."""

import torch
from detectron2.utils.events import EventStorage
from head_cases import image
from tiny_models import build, tiny_cfg

from kd_d2.modeling import FrozenTeacher, FrozenTeacherDistiller, build_stages
from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.views import DetectorView

CLASSES = 3
SIZES = [(3, 4), (2, 2)]
OWN = {f"loss_{x}" for x in ("cls", "box_reg", "centerness", "iou", "dfl", "pos", "neg", "center")}
GT = [image([4.0, 6.0, 40.0, 30.0]), image()]


def decoded(images=2, classes=CLASSES, sizes=SIZES, per_cell=1, seed=0, scale=2.0, grad=False):
    """Random logits of the locations of a small pyramid."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(h * w for h, w in sizes) * per_cell
    logits = scale * torch.randn(images, count, classes, generator=generator)
    return DensePredictions(
        logits=logits.requires_grad_(grad),
        boxes=torch.zeros(images, count, 4),
        points=torch.zeros(count, 2),
        strides=torch.ones(count),
        valid=torch.ones(images, count, dtype=torch.bool),
        sizes=list(sizes),
        per_cell=per_cell,
    )


def view(decoded, labels=None):
    """With the labels (N, A) of an assignment, or of a detector that makes none."""
    assignment = None if labels is None else (list(labels), list(decoded.boxes))
    return DetectorView(None, {}, assignment=assignment, decoded=decoded)


def some_labels(seed=0, images=2, sizes=SIZES):
    """From -1 (ignored) over the classes to the background."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(h * w for h, w in sizes)
    return torch.randint(-1, CLASSES + 1, (images, count), generator=generator)


def detector(arch, num_convs=1, norm="GN", seed=0):
    """A tiny detector whose head says more than the prior of its classes, and no empty boxes."""
    cfg = tiny_cfg(arch)
    cfg.MODEL[arch.upper()].NUM_CONVS = num_convs
    cfg.MODEL[arch.upper()].NORM = norm
    torch.manual_seed(seed)
    model = build(cfg)
    for name, p in model.head.named_parameters():
        if name.endswith("weight") and p.dim() == 4:
            torch.nn.init.normal_(p, std=0.02 if "bbox_pred" in name else 0.1)
    if arch in ("FCOS", "AutoAssign"):
        torch.nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    return model


def distiller(student, teacher, head, **kwargs):
    """Trained by one head; ``head`` is its class."""
    teacher = FrozenTeacher(detector=teacher)
    shapes = {
        "student_shapes": build_stages(student).feature_shapes,
        "teacher_shapes": teacher.feature_shapes,
    }
    heads = {head.__name__: head(**shapes, **kwargs)}
    return FrozenTeacherDistiller(student=student, teacher=teacher, heads=heads).train()


def views(model, batch):
    """(student's, teacher's), ground truth."""
    gt = [x["instances"] for x in batch]
    with EventStorage(0):
        return model.both_views(batch, gt), gt


def step(model, batch):
    """The head's losses of a batch, and their gradients alone, in training mode."""
    model.zero_grad()
    with EventStorage(0):
        losses = model(batch)
    losses = {name: loss for name, loss in losses.items() if name not in OWN}
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert all(loss.isfinite() for loss in losses.values())
    return losses
