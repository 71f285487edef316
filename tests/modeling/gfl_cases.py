"""A tiny GFL for its tests; batches are those of FCOS."""

import math

import torch
from atss_cases import slow_assignment
from fcos_cases import STRIDES, K, TinyBackbone
from torch import nn

from kd_d2.modeling.detectors import GFL, GFLHead

REG_MAX = 4  # strides
SHAPES = [(64 // s, 96 // s) for s in STRIDES.values()]  # of the levels of a batch


def tiny_gfl(seed=0, reg_max=REG_MAX, **kwargs):
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    shapes = list(backbone.output_shape().values())
    return GFL(
        backbone=backbone,
        head=GFLHead(input_shape=shapes, num_classes=K, num_convs=1, reg_max=reg_max),
        reg_max=reg_max,
        head_in_features=list(STRIDES),
        num_classes=K,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **{"test_score_thresh": 0.0, "anchor_scale": 2.0, **kwargs},
    )


def spread(model):
    """Outputs that differ between the cells, and scales that differ between the levels."""
    nn.init.normal_(model.head.bbox_pred.weight, std=0.5)
    nn.init.normal_(model.head.cls_score.weight, std=0.2)
    for scale, value in zip(model.head.scales, (1.0, 1.5, 2.0), strict=True):
        nn.init.constant_(scale.scale, value)
    return model


def slow_softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def slow_sides(bins):
    """Left, top, right, bottom in strides, from all outputs of a cell one after the other."""
    length = len(bins) // 4
    sides = [bins[i * length : (i + 1) * length] for i in range(4)]
    return [sum(j * p for j, p in enumerate(slow_softmax(side))) for side in sides]


def slow_cells(size):
    """Stride, point, and whether it lies on the image padded to a multiple of 32, of each cell."""
    height, width = (math.ceil(x / 32) * 32 for x in size)
    for level, stride in enumerate(STRIDES.values()):
        for i in range(SHAPES[level][0]):
            for j in range(SHAPES[level][1]):
                usable = i < math.ceil(height / stride) and j < math.ceil(width / stride)
                yield stride, (j * stride, i * stride), usable


def slow_owners(cells, boxes, scale):
    """Index of the object of each cell by ATSS, None without one."""
    anchors, valid = [], []
    for stride in STRIDES.values():
        half = stride * scale / 2
        of_level = [(p, v) for s, p, v in cells if s == stride]
        anchors.append([(x - half, y - half, x + half, y + half) for (x, y), _ in of_level])
        valid.append([v for _, v in of_level])
    return slow_assignment(anchors, valid, boxes, 9)
