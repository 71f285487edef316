"""The quality of every location for every object against loops over single numbers."""

import math

import pytest
import torch

from kd_d2.modeling.quality import probability_and_iou, quality_score


def slow_quality(logits, predicted, box, label, exponent):
    """Of one image and one object, from the definition."""
    qualities = []
    for z, p in zip(logits, predicted, strict=True):
        w = max(min(p[2], box[2]) - max(p[0], box[0]), 0)
        h = max(min(p[3], box[3]) - max(p[1], box[1]), 0)
        areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (p, box))
        iou = w * h / max(areas - w * h, 1e-6)
        qualities.append((1 / (1 + math.exp(-z[label]))) ** (1 - exponent) * iou**exponent)
    return qualities


def random_boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator) * 40
    return torch.cat((corners.amin(-2), corners.amax(-2)), dim=-1)


@pytest.mark.parametrize("exponent", [0.8, 0.6, 0.0, 1.0])
def test_equals_loops(exponent):
    n, a, m, k = 2, 50, 4, 3
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(n, a, k, generator=generator) * 4
    predicted, boxes = random_boxes(n, a), random_boxes(n, m, seed=1)
    boxes[1, 2:] = 0  # fewer objects in the second image
    predicted[:, :5, 2:] = predicted[:, :5, :2]  # boxes of no size
    predicted[0, 5] = boxes[0, 0]
    classes = torch.randint(k, (n, m), generator=generator)
    quality = quality_score(*probability_and_iou(logits, predicted, boxes, classes), exponent)
    assert quality.shape == (n, m, a)
    for i in range(n):
        for j in range(m):
            expected = slow_quality(
                *(x.double().tolist() for x in (logits[i], predicted[i], boxes[i, j])),
                classes[i, j].item(),
                exponent,
            )
            expected = torch.tensor(expected)
            torch.testing.assert_close(quality[i, j], expected, rtol=1e-5, atol=1e-6)
    if exponent > 0:
        assert not quality[1, 2:].any()  # nobody's


def test_by_hand():
    """Probability 1/2 and IoU 32 / 96 = 1/3; probability 1/5 and IoU 1; no overlap."""
    logits = torch.tensor([[[9.0, 0], [9, -math.log(4)], [9, 9]]])
    predicted = torch.tensor([[[4.0, 0, 12, 8], [0, 0, 8, 8], [8, 0, 16, 8]]])
    box, label = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[1]])
    probability, iou = probability_and_iou(logits, predicted, box, label)
    assert probability[0, 0].tolist() == pytest.approx([0.5, 0.2, 1 / (1 + math.exp(-9))])
    assert iou[0, 0].tolist() == pytest.approx([1 / 3, 1, 0])
    expected = [0.5**0.2 * 3**-0.8, 0.2**0.2, 0]
    assert quality_score(probability, iou, 0.8)[0, 0].tolist() == pytest.approx(expected)


def test_inputs_are_left_alone():
    inputs = torch.randn(1, 6, 2), random_boxes(1, 6), random_boxes(1, 2, seed=1)
    classes, copies = torch.zeros(1, 2, dtype=torch.long), [x.clone() for x in inputs]
    scores = probability_and_iou(*inputs, classes)
    before = [x.clone() for x in scores]
    quality_score(*scores, 0.6)
    for x, copy in zip((*inputs, *scores), (*copies, *before), strict=True):
        assert torch.equal(x, copy)


def test_no_gradient_and_float32():
    logits, predicted = torch.zeros(1, 5, 2).half(), random_boxes(1, 5)
    logits[..., 0] = -15
    predicted.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = probability_and_iou(
            logits, predicted, predicted[:, :1], torch.zeros(1, 1, dtype=torch.long)
        )
        quality = quality_score(*scores, 0.8)
    assert all(x.dtype == torch.float32 and not x.requires_grad for x in (*scores, quality))
    # in float16 the probability would be off by 8 %
    assert quality[0, 0, 0].item() == pytest.approx((1 / (1 + math.exp(15))) ** 0.2)


def test_boxes_of_no_size_have_no_quality():
    point = torch.tensor([[[3.0, 3, 3, 3]]])
    scores = probability_and_iou(torch.zeros(1, 1, 1), point, point, torch.zeros(1, 1).long())
    assert scores[1].item() == 0 and quality_score(*scores, 0.8).item() == 0
