"""A tiny DDOD for its tests, and its assignment with loops; batches are those of FCOS."""

import torch
from atss_cases import slow_iou
from fcos_cases import STRIDES, K, TinyBackbone

from kd_d2.modeling.detectors.ddod import DDOD
from kd_d2.modeling.detectors.ddod_head import DDODHead


def tiny_ddod(seed=0, **kwargs):
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    shapes = list(backbone.output_shape().values())
    return DDOD(
        backbone=backbone,
        head=DDODHead(input_shape=shapes, num_classes=K, num_convs=1),
        head_in_features=list(STRIDES),
        num_classes=K,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **{"test_score_thresh": 0.0, "anchor_scale": 2.0, **kwargs},
    )


def slow_quality(probabilities, predicted, box, label, exponent):
    """Quality of each anchor for one object, from the definition."""
    return [
        p[label] ** (1 - exponent) * slow_iou(b, box) ** exponent
        for p, b in zip(probabilities, predicted, strict=True)
    ]


def slow_owners(centres, valid, qualities, boxes, k):
    """Who learns what in one image, one object after the other.

    Args:
        centres: list of x, y; valid: list of booleans.
        qualities: for each object a list over the anchors.

    Returns:
        index of the object of each anchor, None without one.
    """
    owners, best = [None] * len(centres), [0.0] * len(centres)
    for m, (box, quality) in enumerate(zip(boxes, qualities, strict=True)):
        usable = [r for r in range(len(centres)) if valid[r]]
        for r in sorted(usable, key=lambda r: -quality[r])[:k]:
            x, y = centres[r]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if inside and quality[r] > best[r]:
                owners[r], best[r] = m, quality[r]
    return owners


def spread(model):
    """Outputs that differ between the cells, so that every level and both assignments differ."""
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.1)
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.5)
    for scale, value in zip(model.head.scales, (1.0, 1.5, 2.0), strict=True):
        torch.nn.init.constant_(scale.scale, value)
    return model
