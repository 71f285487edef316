"""A tiny ATSS for its tests; batches are those of FCOS."""

import torch
from fcos_cases import STRIDES, K, TinyBackbone

from kd_d2.modeling.detectors import ATSS, ATSSHead


def tiny_atss(seed=0, **kwargs):
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    shapes = list(backbone.output_shape().values())
    return ATSS(
        backbone=backbone,
        head=ATSSHead(input_shape=shapes, num_classes=K, num_convs=1),
        head_in_features=list(STRIDES),
        num_classes=K,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **{"test_score_thresh": 0.0, "anchor_scale": 2.0, **kwargs},
    )


def slow_decode(deltas, anchor):
    """The box of four outputs, from the definition, one number at a time."""
    x1, y1, x2, y2 = anchor
    dx, dy, dw, dh = (d * s for d, s in zip(deltas, (0.1, 0.1, 0.2, 0.2), strict=True))
    limit = 4.135166556742356
    w = (x2 - x1) * 2.718281828459045 ** min(max(dw, -limit), limit)
    h = (y2 - y1) * 2.718281828459045 ** min(max(dh, -limit), limit)
    cx = (x1 + x2) / 2 + dx * (x2 - x1)
    cy = (y1 + y2) / 2 + dy * (y2 - y1)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def slow_iou(a, b):
    """IoU of two boxes of positive area."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_assignment(anchors, valid, boxes, k):
    """Algorithm 1 of the paper for one image, one object after the other.

    Args:
        anchors: list over the levels of lists of boxes.
        valid: the same of booleans.
        boxes: list of boxes.

    Returns:
        index of the object of each anchor of all levels, None without one.
    """
    flat = [a for level in anchors for a in level]
    owners, best_iou = [None] * len(flat), [0.0] * len(flat)
    for m, box in enumerate(boxes):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for level, usable in zip(anchors, valid, strict=True):
            distances = []
            for r, (x1, y1, x2, y2) in enumerate(level):
                if usable[r]:
                    d = (((x1 + x2) / 2 - cx) ** 2 + ((y1 + y2) / 2 - cy) ** 2) ** 0.5
                    distances.append((d, start + r))
            candidates += [r for _, r in sorted(distances)[:k]]
            start += len(level)
        ious = [slow_iou(flat[r], box) for r in candidates]
        mean = sum(ious) / len(ious)
        std = (sum((x - mean) ** 2 for x in ious) / (len(ious) - 1)) ** 0.5
        for r, iou in zip(candidates, ious, strict=True):
            x, y = (flat[r][0] + flat[r][2]) / 2, (flat[r][1] + flat[r][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if inside and iou >= mean + std and iou > best_iou[r]:
                owners[r], best_iou[r] = m, iou
    return owners
