"""Detections of ATSS against loops over single numbers."""

import math

import pytest
import torch
from atss_cases import slow_decode, tiny_atss
from detectron2.structures import ImageList
from fcos_cases import BATCH, STRIDES, K, slow_nms

SHAPES = [(64 // s, 96 // s) for s in STRIDES.values()]


def random_predictions(n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        [torch.randn(n, c, *s, generator=generator) * scale for s in SHAPES]
        for c, scale in ((K, 1), (4, 3), (1, 1))
    )


def slow_inference(model, predictions, n, image_size, topk):
    """Detections of image n with one number at a time: boxes, scores, classes."""
    boxes, scores, classes = [], [], []
    for level, stride in enumerate(STRIDES.values()):
        logits, deltas, quality = (p[level][n] for p in predictions)
        height, width = (math.ceil(side / 32) * 32 // stride for side in image_size)
        cells = []
        for i in range(height):
            for j in range(width):
                p = [1 / (1 + math.exp(-x)) for x in logits[:, i, j].tolist()]
                cells.append((max(p), p, i, j))
        cells.sort(reverse=True)
        for _, probabilities, i, j in cells[:topk]:
            half = stride * 2 / 2
            anchor = (j * stride - half, i * stride - half, j * stride + half, i * stride + half)
            x1, y1, x2, y2 = slow_decode(deltas[:, i, j].tolist(), anchor)
            q = 1 / (1 + math.exp(-quality[0, i, j].item()))
            for k, p in enumerate(probabilities):
                if p > model.test_score_thresh:
                    box = [min(max(x, 0), image_size[1]) for x in (x1, x2)]
                    box += [min(max(y, 0), image_size[0]) for y in (y1, y2)]
                    boxes.append([box[0], box[2], box[1], box[3]])
                    scores.append(p * q)
                    classes.append(k)
    return slow_nms(model, boxes, scores, classes)


@pytest.mark.parametrize("branch", ["iou", "centerness"])
@pytest.mark.parametrize("topk, threshold, limit", [(1000, 0.0, 1000), (20, 0.45, 30), (3, 0.5, 8)])
def test_inference_equals_loops_and_leaves_predictions_alone(topk, threshold, limit, branch):
    model = tiny_atss(
        branch=branch,
        test_topk_candidates=topk,
        test_score_thresh=threshold,
        max_detections_per_image=limit,
    ).eval()
    predictions = random_predictions()
    before = [x.clone() for level in predictions for x in level]
    images = ImageList(torch.zeros(2, 3, 64, 96), [(60, 96), (64, 50)])
    features = [torch.zeros(2, 32, *s) for s in SHAPES]
    results = model.forward_inference(images, features, predictions)
    after = [x for level in predictions for x in level]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [r.image_size for r in results] == images.image_sizes
    for n, (result, size) in enumerate(zip(results, images.image_sizes, strict=True)):
        boxes, scores, classes = slow_inference(model, predictions, n, size, topk)
        assert 0 < len(scores) <= limit
        torch.testing.assert_close(result.scores, scores)
        torch.testing.assert_close(result.pred_boxes.tensor, boxes, atol=1e-3, rtol=1e-5)
        assert torch.equal(result.pred_classes, classes)


def test_a_level_keeps_its_best_anchors_with_all_their_classes():
    model = tiny_atss(test_topk_candidates=1, test_score_thresh=0.3, test_nms_thresh=1.0).eval()
    logits, deltas, quality = ([torch.full((1, c, *s), -9.0) for s in SHAPES] for c in (K, 4, 1))
    logits[0][0, :, 2, 3] = torch.tensor([2.0, -2.0, 1.0])
    logits[0][0, 1, 4, 4] = 1.9  # second best of its level
    quality[0][0, 0, 2, 3] = -1.0
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    features = [torch.zeros(1, 32, *s) for s in SHAPES]
    result = model.forward_inference(images, features, (logits, deltas, quality))[0]
    assert result.pred_classes.tolist() == [0, 2]
    expected = [1 / (1 + math.exp(-x)) / (1 + math.exp(1)) for x in (2, 1)]  # below the threshold
    assert result.scores.tolist() == pytest.approx(expected)


def test_nothing_is_detected_in_the_padding(monkeypatch):
    model = tiny_atss().eval()
    seen = []
    best_detections = model.best_detections
    monkeypatch.setattr(
        model, "best_detections", lambda *a: seen.append(a[1]) or best_detections(*a)
    )
    small, large = ({"image": x["image"]} for x in (BATCH[1], BATCH[0]))
    model([small, large])
    of_small, of_large = ([len(scores) for _, scores, _ in levels] for levels in seen)
    assert of_small == [K * 8 * 8, K * 4 * 4, K * 2 * 2]
    assert of_large == [K * 8 * 12, K * 4 * 6, K * 2 * 3]
