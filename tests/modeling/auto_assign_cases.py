"""A tiny AutoAssign, random batches, and its losses from the definition, one number at a time."""

import math

import torch
from detectron2.structures import Boxes, ImageList, Instances
from fcos_cases import STRIDES, K, TinyBackbone

from kd_d2.modeling.detectors import AutoAssign, AutoAssignHead

SIZE = (48, 64)
SHAPES = [(6, 8), (3, 4), (2, 2)]  # the last one reaches beyond the image
POINTS = [
    (j * s, i * s, s)
    for s, (h, w) in zip(STRIDES.values(), SHAPES, strict=True)
    for i in range(h)
    for j in range(w)
]


def tiny_auto_assign(seed=0, **kwargs):
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    shapes = list(backbone.output_shape().values())
    return AutoAssign(
        backbone=backbone,
        head=AutoAssignHead(input_shape=shapes, num_classes=K, num_convs=1),
        head_in_features=list(STRIDES),
        num_classes=K,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **{"test_score_thresh": 0.0, **kwargs},
    )


def objects(boxes, classes):
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    return instances


def random_objects(generator, count):
    """Boxes of 4 to 50 pixels, some beyond the border, many of them overlapping."""
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([50.0, 36.0]) - 4
    sizes = 4 + torch.rand(count, 2, generator=generator) * 46
    classes = torch.randint(K, (count,), generator=generator)
    return objects(torch.cat((corners, corners + sizes), 1).tolist(), classes.tolist())


def random_predictions(generator, n):
    """What the head returns: boxes of all qualities, many of which begin or end at their point."""
    logits, distances, objectness = (
        [torch.randn(n, c, *s, generator=generator) for s in SHAPES] for c in (K, 4, 1)
    )
    least = torch.tensor([0.0, 0, 0.9, 0.9])[:, None, None]  # a box without a side has no gradient
    return logits, [((x + 0.8) * 15).clamp(min=least) for x in distances], objectness


def training_losses(model, predictions, gt):
    """``forward_training`` of predictions of the maps of :data:`SHAPES`."""
    images = ImageList(torch.zeros(len(gt), 3, *SIZE), [SIZE] * len(gt))
    features = [torch.zeros(len(gt), 1, *s) for s in SHAPES]
    return model.forward_training(images, features, predictions, gt)


def slow_losses(predictions, gt, mean, sigma, box_weight=5.0):
    """The three losses of 2007.03496 as PGD's release weighs them, and their gradients by autograd.

    Args:
        predictions: float64 lists of maps.
        gt: may have weights; a box's is what the GIoU loss counts where that of its object is 1.
        mean, sigma: (K, 2) float64.
    """
    zero = mean.sum() * 0
    pos, neg, centre, prior_sum = zero, zero, zero, 0.0
    for n, image in enumerate(gt):
        logits, distances, objectness = (
            torch.cat([x[n].flatten(1) for x in level], 1).T for level in predictions
        )
        cls, obj = logits.sigmoid(), objectness.sigmoid()
        boxes = image.gt_boxes.tensor.double().tolist()
        classes = image.gt_classes.tolist()
        of_objects = [1.0] * len(boxes)
        of_boxes = of_objects
        if image.has("gt_weights"):
            of_objects, of_boxes = image.gt_weights.tolist(), image.gt_box_weights.tolist()
        weights = [[1.0] * K for _ in POINTS]
        image_prior, found = zero, False
        for b, c, of_object, of_box in zip(boxes, classes, of_objects, of_boxes, strict=True):
            share = of_box / of_object if of_object else 1.0
            inside = [r for r, p in enumerate(POINTS) if _strictly_inside(p, b)]
            parts, sums, confidences = [], zero, []
            for r in inside:
                x, y, s = POINTS[r]
                g = _gaussian((x - (b[0] + b[2]) / 2) / s, mean[c, 0], sigma[c, 0])
                g = g * _gaussian((y - (b[1] + b[3]) / 2) / s, mean[c, 1], sigma[c, 1])
                _, giou = slow_ious(_box(POINTS[r], distances[r]), b)
                confidence = cls[r, c] * obj[r, 0] * torch.exp(-box_weight * share * (1 - giou))
                part = torch.exp(3 * confidence) * g
                image_prior, sums = image_prior + g, sums + part
                parts.append(part)
                confidences.append(confidence)
            bag = zero
            for part, confidence in zip(parts, confidences, strict=True):
                bag = bag + part / max(sums, torch.full_like(sums, 1e-12)) * confidence
            pos = pos + of_object * (-max(bag.log(), zero - 100) if inside else zero + 100)

            if inside:
                found = True
                t = []
                for r in inside:
                    box = _box(POINTS[r], distances[r].detach())
                    best = max(float(slow_ious(box, other)[0]) for other in boxes)
                    t.append(1 / max(1 - best, 1e-12))
                for r, value in zip(inside, t, strict=True):
                    weights[r][c] = 1 - (value - min(t) + 1e-12) / (max(t) - min(t) + 1e-12)
        for r in range(len(POINTS)):
            for k in range(K):
                x = cls[r, k] * obj[r, 0] * weights[r][k]
                neg = neg - x**2 * torch.log1p(-x)
        prior_sum += image_prior.item()
        if found:
            centre = centre + len(boxes) / max(image_prior, zero + 1e-12)
    return {
        "loss_pos": 0.25 * pos / max(1, sum(len(x) for x in gt)),
        "loss_neg": 0.75 * neg / max(1, prior_sum),
        "loss_center": 0.75 * centre / len(gt),
    }


def slow_ious(a, b):
    """IoU and GIoU of two boxes."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = w * h if w >= 0 and h >= 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union, inter / union - (hull - union) / hull


def _strictly_inside(point, box):
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def _gaussian(x, mean, sigma):
    return math.e ** (-((x - mean) ** 2) / (2 * sigma**2))


def _box(point, distances):
    left, top, right, bottom = distances
    return point[0] - left, point[1] - top, point[0] + right, point[1] + bottom
