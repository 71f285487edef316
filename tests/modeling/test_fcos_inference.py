"""Detections of FCOS against loops over single numbers."""

import math

import pytest
import torch
from detectron2.structures import ImageList
from fcos_cases import STRIDES, K, slow_nms, tiny_fcos


def slow_inference(model, predictions, image_size, topk):
    """Detections of image 0 with one number at a time: sorted (score, class, box)."""
    boxes, scores, classes = [], [], []
    for level, stride in enumerate(STRIDES.values()):
        logits, distances, centerness = (p[level][0] for p in predictions)
        height, width = logits.shape[-2:]
        candidates = [
            (1 / (1 + math.exp(-logits[k, i, j].item())), k, i, j)
            for k in range(K)
            for i in range(height)
            for j in range(width)
        ]
        candidates.sort(reverse=True)
        for p, k, i, j in candidates[: min(topk, height * width)]:
            if p <= model.test_score_thresh:
                continue
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            left, top, right, bottom = distances[:, i, j].tolist()
            boxes.append([x - left, y - top, x + right, y + bottom])
            scores.append(math.sqrt(p / (1 + math.exp(-centerness[0, i, j].item()))))
            classes.append(k)
    return slow_nms(model, boxes, scores, classes)


@pytest.mark.parametrize("topk, threshold, limit", [(1000, 0.0, 1000), (20, 0.45, 30), (5, 0.5, 8)])
def test_inference_equals_loops_and_leaves_predictions_alone(topk, threshold, limit):
    model = tiny_fcos(
        test_topk_candidates=topk, test_score_thresh=threshold, max_detections_per_image=limit
    ).eval()
    generator = torch.Generator().manual_seed(0)
    features = [torch.zeros(2, 32, 64 // s, 96 // s) for s in STRIDES.values()]
    predictions = tuple(
        [torch.randn(2, c, *f.shape[-2:], generator=generator) for f in features] for c in (K, 4, 1)
    )
    predictions = (predictions[0], [(x.abs() + 0.5) * 10 for x in predictions[1]], predictions[2])
    before = [x.clone() for level in predictions for x in level]
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (64, 64)])
    results = model.forward_inference(images, features, predictions)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [x for level in predictions for x in level], strict=True)
    )
    assert [r.image_size for r in results] == images.image_sizes
    boxes, scores, classes = slow_inference(model, predictions, (64, 96), topk)
    assert 0 < len(scores) <= limit
    torch.testing.assert_close(results[0].scores, scores)
    torch.testing.assert_close(results[0].pred_boxes.tensor, boxes)
    assert torch.equal(results[0].pred_classes, classes)
