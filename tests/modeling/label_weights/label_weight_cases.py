"""Tiny detectors whose losses look at weights, boxes to ignore, or covered classes."""

import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from tiny_models import DENSE, build, random_batch, tiny_cfg
from torch import Tensor

from kd_d2.modeling.label_weights import Attached, weigh_labels

ARCHS = (*DENSE, "FasterRCNN", "CascadeRCNN")
SIZES = ((140, 200), (128, 128))


def model_of(arch, sigmoid=False, **settings):
    cfg = tiny_cfg(arch)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = sigmoid
    for key, value in settings.items():
        cfg.MODEL.LABEL_WEIGHTS[key] = value
    if arch == "RetinaNet":
        cfg.MODEL.RETINANET.IOU_THRESHOLDS = [0.3, 0.4]
    torch.manual_seed(1)
    model = build(cfg).train()
    weigh_labels(model, cfg)
    return model


def batch_of(weights=None, of_boxes=None, ignore=None, covered=(None, None)):
    """Two images with three and two objects; a weight for each of the five."""
    batch = random_batch(SIZES, objects=(3, 2))
    at = 0
    for x, classes in zip(batch, covered, strict=True):
        gt: Instances = x["instances"]
        n = len(gt)
        if weights is not None:
            gt.gt_weights = torch.tensor(weights[at : at + n])
            gt.gt_box_weights = torch.tensor((of_boxes or weights)[at : at + n])
        if ignore is not None:
            gt.ignore_boxes = Attached(torch.tensor(ignore), n)
        if classes is not None:
            gt.covered_classes = Attached(torch.tensor(classes, dtype=torch.long), n)
        at += n
    return batch


def losses(arch, batch, **settings) -> dict[str, Tensor]:
    """Of a fresh model and the same random numbers each time."""
    model = model_of(arch, **settings)
    with EventStorage():
        torch.manual_seed(7)
        return {name: value.detach() for name, value in model(batch).items()}
