"""FCOS: losses against per-point loops, batches without objects."""

import math

import pytest
import torch
from fcos_cases import BATCH, EMPTY, STRIDES, K, tiny_fcos
from torch import nn


def slow_losses(model, batch):
    """The three losses with one Python number at a time."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    logits, distances, centerness = model.head(list(features.values()))
    sizes = [64, 128]
    ranges = list(zip([-1, *sizes], [*sizes, math.inf], strict=True))
    cls = box = ctr = ctr_sum = 0.0
    positives = 0
    for n, sample in enumerate(batch):
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        for level, stride in enumerate(STRIDES.values()):
            height, width = logits[level].shape[-2:]
            for i in range(height):
                for j in range(width):
                    x, y = (j + 0.5) * stride, (i + 0.5) * stride
                    best = None
                    for b, (x1, y1, x2, y2) in enumerate(boxes):
                        sides = (x - x1, y - y1, x2 - x, y2 - y)
                        off = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                        area = (x2 - x1) * (y2 - y1)
                        if (
                            min(sides) > 0
                            and off < 1.5 * stride
                            and ranges[level][0] <= max(sides) <= ranges[level][1]
                            and (best is None or area < best[0])
                        ):
                            best = (area, b, sides)
                    for k in range(K):
                        p = 1 / (1 + math.exp(-logits[level][n, k, i, j].item()))
                        if best is not None and classes[best[1]] == k:
                            cls += 0.25 * (1 - p) ** 2 * -math.log(p)
                        else:
                            cls += 0.75 * p**2 * -math.log(1 - p)
                    if best is None:
                        continue
                    positives += 1
                    left, top, right, bottom = best[2]
                    target = math.sqrt(
                        min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                    )
                    ctr_sum += target
                    p = 1 / (1 + math.exp(-centerness[level][n, 0, i, j].item()))
                    ctr -= target * math.log(p) + (1 - target) * math.log(1 - p)
                    pl, pt, pr, pb = distances[level][n, :, i, j].tolist()
                    inter = (min(pl, left) + min(pr, right)) * (min(pt, top) + min(pb, bottom))
                    union = (pl + pr) * (pt + pb) + best[0] - inter
                    hull = (max(pl, left) + max(pr, right)) * (max(pt, top) + max(pb, bottom))
                    box += target * (1 - inter / union + (hull - union) / hull)
    assert positives > 5
    return {
        "loss_cls": cls / max(1, positives),
        "loss_box_reg": box / max(1, ctr_sum),
        "loss_centerness": ctr / max(1, positives),
    }


def test_losses_equal_per_point_loops():
    model = tiny_fcos()
    nn.init.constant_(model.head.bbox_pred.bias, 0.7)  # not all boxes empty
    for scale, value in zip(model.head.scales, (1.0, 1.5, 2.0), strict=True):
        nn.init.constant_(scale.scale, value)
    losses = model(BATCH)
    expected = slow_losses(model, BATCH)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=2e-5), name


def test_label_anchors_format():
    model = tiny_fcos()
    features = [torch.zeros(2, 32, 64 // s, 96 // s) for s in STRIDES.values()]
    anchors = model.anchor_generator(features)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in [BATCH[0], EMPTY]])
    points = 8 * 12 + 4 * 6 + 2 * 3
    assert [x.shape for x in labels] == [(points,)] * 2
    assert [x.shape for x in boxes] == [(points, 4)] * 2
    assert set(labels[0].tolist()) == {0, 1, 2, K}
    assert labels[1].eq(K).all()
    # cell (4, 8) of p3 is the point (68, 36), which only the fourth object's centre square holds
    assert labels[0][4 * 12 + 8] == 0
    assert boxes[0][4 * 12 + 8].tolist() == [60, 30, 72, 44]


def test_anchor_is_a_square_of_one_stride_around_the_point():
    anchors = tiny_fcos().anchor_generator([torch.zeros(1, 1, 2, 2)] * 3)
    assert anchors[0].tensor[1].tolist() == [8, 0, 16, 8]
    assert anchors[2].get_centers()[2].tolist() == [16, 48]


@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]]])
def test_images_without_objects_train(batch):
    model = tiny_fcos()
    losses = model(batch)
    sum(losses.values()).backward()
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_centerness"}
    assert all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is EMPTY:
        assert losses["loss_box_reg"] == 0 and losses["loss_centerness"] == 0
        assert losses["loss_cls"] > 0
        assert not model.head.bbox_pred.weight.grad.any()


def test_same_graph_with_and_without_objects():
    def reached(batch):
        model = tiny_fcos()
        sum(model(batch).values()).backward()
        return [n for n, p in model.named_parameters() if p.grad is not None]

    assert reached([EMPTY]) == reached([BATCH[0]])


def test_order_of_objects_does_not_matter():
    model = tiny_fcos()
    flipped = dict(BATCH[0], instances=BATCH[0]["instances"][torch.tensor([3, 1, 0, 2])])
    for a, b in zip(model(BATCH[:1]).values(), model([flipped]).values(), strict=True):
        assert torch.equal(a, b)


def test_gradient_reaches_only_positive_boxes():
    model = tiny_fcos()
    nn.init.constant_(model.head.bbox_pred.bias, 0.5)
    images = model.preprocess_image(BATCH)
    features = list(model.backbone(images.tensor).values())
    predictions = [[x.detach().requires_grad_() for x in level] for level in model.head(features)]
    gt = [x["instances"] for x in BATCH]
    sum(model.forward_training(images, features, predictions, gt).values()).backward()
    labels, _ = model.label_anchors(model.anchor_generator(features), gt)
    positive = (torch.stack(labels) != K).sum()
    touched = sum(x.grad.abs().sum(1).ne(0).sum() for x in predictions[1])
    centerness = sum(x.grad.ne(0).sum() for x in predictions[2])
    assert 0 < touched <= positive and centerness == positive
    assert all(x.grad.ne(0).all() for x in predictions[0])
