"""A student and its frozen teacher, and their views of a batch with regions."""

import torch
from detectron2.utils.events import EventStorage
from tiny_models import build, random_batch

from kd_d2.modeling.views import DetectorView

RCNNS = ("FasterRCNN", "MaskRCNN", "CascadeRCNN")


def distiller(frozen_cfg, student, teacher, heads, **regions):
    """A tiny distiller in training mode; ``regions``: keys of MODEL.KD.REGIONS."""
    torch.manual_seed(0)
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = list(heads)
    cfg.MODEL.KD.CKD.QUEUE_SIZE = 40
    for key, value in regions.items():
        cfg.MODEL.KD.REGIONS[key] = value
    return build(cfg).train()


def both_views(model, batch) -> tuple[DetectorView, DetectorView]:
    """Student's and teacher's, as the heads get them."""
    gt = [x["instances"] for x in batch]
    with EventStorage(0):
        student, teacher = model.both_views(batch, gt)
        model.regions.compare(student, teacher, gt)
    return student, teacher


def batch_for(student, **kwargs):
    return random_batch(masks=student == "MaskRCNN", **kwargs)
