"""A tiny PAA for its tests, and its assignment with loops; batches are those of FCOS."""

import math

import numpy as np
import torch
from atss_cases import slow_decode
from fcos_cases import STRIDES, K, TinyBackbone
from sklearn.mixture import GaussianMixture

from kd_d2.modeling.detectors.paa import PAA
from kd_d2.modeling.detectors.paa_head import PAAHead


def tiny_paa(seed=0, objectness="none", iou_branch=True, **kwargs):
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    shapes = list(backbone.output_shape().values())
    settings = {"objectness": objectness, "iou_branch": iou_branch}
    return PAA(
        backbone=backbone,
        head=PAAHead(input_shape=shapes, num_classes=K, num_convs=1, **settings),
        head_in_features=list(STRIDES),
        num_classes=K,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **{"test_score_thresh": 0.0, "anchor_scale": 2.0, **kwargs},
    )


def squares(height, width, strides=(8, 16, 32), scale=8):
    """Anchors (R_l, 4) of each level around the corners of cells."""
    levels = []
    for s in strides:
        y, x = torch.meshgrid(
            torch.arange(0.0, height, s), torch.arange(0.0, width, s), indexing="ij"
        )
        centre = torch.stack((x, y), dim=-1).view(-1, 2)
        levels.append(torch.cat((centre - s * scale / 2, centre + s * scale / 2), dim=1))
    return levels


def owners_of(pre, num_boxes):
    """For each image: the object of each anchor, None without one."""
    owners = [[None] * pre.valid.shape[1] for _ in pre.valid]
    for n, r, o in zip(pre.image.tolist(), pre.anchor.tolist(), pre.object.tolist(), strict=True):
        assert o // num_boxes == n and owners[n][r] is None
        owners[n][r] = o % num_boxes
    return owners


def random_objects(seed, n=4, m=8):
    """Boxes of 0 to 90 pixels at quarters of one, many of them tiny or tied, and some of none."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, m, 2, generator=generator) * 120
    size = torch.rand(n, m, 2, generator=generator) ** 3 * 90
    boxes = (torch.cat((corner, corner + size), dim=-1) * 4).round() / 4
    boxes[0, m // 2 :] = 0  # fewer objects in the first image
    boxes[3] = 0
    boxes[1, 3] = boxes[1, 0]
    boxes[1, 4] = boxes[1, 1] + torch.tensor([1.0, 0, 1, 0])
    boxes[2, 2:, 2:] = boxes[2, 2:, :2] + torch.tensor([10.0, 10])
    return boxes, torch.randint(5, (n, m), generator=generator)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_giou(a, b):
    """GIoU and IoU of two boxes, from the definitions."""
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(w, 0) * max(h, 0)
    union = max(area_a + area_b - inter, 1e-6)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    hull = max(hull, 1e-6)
    return inter / union - (hull - union) / hull, inter / union


def slow_focal(logits, label, alpha=0.25, gamma=2.0):
    """Sum over the classes; ``label`` may be the background."""
    total = 0.0
    for k, z in enumerate(logits):
        p = sigmoid(z)
        if k == label:
            total -= alpha * (1 - p) ** gamma * math.log(p)
        else:
            total -= (1 - alpha) * p**gamma * math.log(1 - p)
    return total


def slow_cost(logits, predicted, label, box, box_weight=1.3):
    return slow_focal(logits, label) + box_weight * (1 - slow_giou(predicted, box)[0])


def slow_iou_table(anchors, boxes):
    """IoU of each anchor (rows) with each box, float32 as in the detector, so that ties are its."""
    table = np.zeros((len(anchors), len(boxes)), np.float32)
    anchors, boxes = (np.array(x, np.float32).reshape(-1, 4) for x in (anchors, boxes))
    for r, a in enumerate(anchors):
        for m, b in enumerate(boxes):
            w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
            inter = max(w, np.float32(0)) * max(h, np.float32(0))
            areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            table[r, m] = inter / max(areas - inter, np.float32(1e-6))
    return table


def slow_preassign(anchors, valid, boxes, threshold=0.1):
    """Number of the object that each anchor of one image may learn, None without one.

    Args:
        anchors: list of boxes; valid: list of booleans; boxes: those of the objects.
    """
    owners = [None] * len(anchors)
    table = slow_iou_table(anchors, boxes)
    usable = [r for r in range(len(anchors)) if valid[r]]
    objects = [m for m, b in enumerate(boxes) if b[2] - b[0] >= 1 and b[3] - b[1] >= 1]
    for r in usable:
        best = None
        for m in objects:
            if best is None or table[r, m] > table[r, best]:
                best = m
        if best is not None and table[r, best] >= np.float32(threshold):
            owners[r] = best
    for m in objects:
        highest = max((table[r, m] for r in usable), default=0)
        for r in usable:
            if highest > 0 and table[r, m] == highest:
                owners[r] = m
    return owners


def slow_candidates(costs, levels, topk):
    """Indices of an object's candidates, ascending by cost.

    Args:
        costs, levels: of its pre-assigned anchors, in their order.
    """
    chosen = []
    for level in sorted(set(levels)):
        mine = [i for i, of in enumerate(levels) if of == level and math.isfinite(costs[i])]
        chosen += sorted(mine, key=lambda i: costs[i])[:topk]
    return sorted(chosen, key=lambda i: costs[i])


def slow_split(costs, split="filtered", single="drop"):
    """Indices of the positives among the costs of an object's candidates, ascending."""
    if len(costs) < 2:
        return list(range(len(costs))) if single == "keep" else []
    x = np.array(costs, np.float64)[:, None]
    mixture = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[x[0], x[-1]],
        precisions_init=[[[1.0]], [[1.0]]],
    ).fit(x)
    cheap = [i for i, component in enumerate(mixture.predict(x)) if component == 0]
    if not cheap:
        return list(range(len(costs))) if split == "prefix" else []
    density = mixture.score_samples(x)
    highest = max(density[i] for i in cheap)
    peak = min(i for i in cheap if density[i] >= highest - 1e-9 * max(1, abs(highest)))
    return [i for i in range(peak + 1) if split == "prefix" or i in cheap]


def slow_positives(owners, costs, levels, topk, split="filtered", single="drop"):
    """Anchors of one image that become positive.

    Args:
        owners: object of each anchor, None without one; costs: of each anchor for its object.
    """
    positive = set()
    for m in {o for o in owners if o is not None}:
        mine = [r for r, o in enumerate(owners) if o == m]
        chosen = slow_candidates([costs[r] for r in mine], [levels[r] for r in mine], topk)
        chosen = [mine[i] for i in chosen]
        positive |= {chosen[i] for i in slow_split([costs[r] for r in chosen], split, single)}
    return positive


def slow_vote(box, label, candidates, scores, classes):
    """The mean box of one detection, one candidate after the other."""
    total, weights = [0.0] * 4, 0.0
    for b, score, k in zip(candidates, scores, classes, strict=True):
        iou = slow_giou(box, b)[1]
        if k == label and iou > 0.01:
            p = score * math.exp(-((1 - iou) ** 2) / 0.025)
            weights += p
            total = [t + p * x for t, x in zip(total, b, strict=True)]
    return [t / weights for t in total] if weights else box


def slow_valid(anchor, stride, size):
    """Whether an anchor lies on the image, padded to a multiple of 32."""
    height, width = (math.ceil(x / 32) * 32 for x in size)
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return x < math.ceil(width / stride) * stride and y < math.ceil(height / stride) * stride


def slow_images(model, images, outputs, batch):
    """What each image predicts and who learns what, one Python number at a time.

    Yields:
        for each anchor: its logits, its box, its IoU logit (None without a branch), whether it
        takes part, and the object that it learns (None without one).
    """
    features = [torch.zeros(1, 1, *x.shape[-2:]) for x in outputs[0]]
    anchors = [a.tensor.tolist() for a in model.anchor_generator(features)]
    levels = [i for i, of_level in enumerate(anchors) for _ in of_level]
    flat, strides = sum(anchors, []), list(STRIDES.values())
    for n, sample in enumerate(batch):
        logits, deltas, *quality = (
            torch.cat([x[n].flatten(1) for x in level], 1).T.double().tolist() for level in outputs
        )
        quality = [q[0] for q in quality[0]] if quality else [None] * len(flat)
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        size = images.image_sizes[n]
        valid = [slow_valid(a, strides[i], size) for a, i in zip(flat, levels, strict=True)]
        predicted = [slow_decode(d, a) for d, a in zip(deltas, flat, strict=True)]
        owners = slow_preassign(flat, valid, boxes, model.iou_threshold)
        costs = [
            None if o is None else slow_cost(z, p, classes[o], boxes[o], model.box_loss_weight)
            for z, p, o in zip(logits, predicted, owners, strict=True)
        ]
        rules = model.topk, model.split, model.single_candidate
        positive = slow_positives(owners, costs, levels, *rules)
        owners = [o if r in positive else None for r, o in enumerate(owners)]
        yield logits, predicted, quality, valid, owners


def slow_losses(model, images, outputs, batch):
    """The three losses; without an IoU branch the last is 0."""
    sums, weights, count = dict.fromkeys(("loss_cls", "loss_box_reg", "loss_iou"), 0.0), 0.0, 0
    for n, predictions in enumerate(slow_images(model, images, outputs, batch)):
        boxes = batch[n]["instances"].gt_boxes.tensor.tolist()
        classes = batch[n]["instances"].gt_classes.tolist()
        for logits, predicted, quality, valid, owner in zip(*predictions, strict=True):
            if valid:
                sums["loss_cls"] += slow_focal(logits, K if owner is None else classes[owner])
            if owner is not None:
                giou, iou = slow_giou(predicted, boxes[owner])
                weight = iou if model.box_loss_weighting == "iou" and quality is not None else 1
                sums["loss_box_reg"] += weight * (1 - giou)
                weights, count = weights + weight, count + 1
                if quality is not None:
                    p = sigmoid(quality)
                    sums["loss_iou"] -= iou * math.log(p) + (1 - iou) * math.log(1 - p)
    return {
        "loss_cls": sums["loss_cls"] / max(count, len(batch)),
        "loss_box_reg": model.box_loss_weight * sums["loss_box_reg"] / weights,
        "loss_iou": model.iou_loss_weight * sums["loss_iou"] / count,
    }
