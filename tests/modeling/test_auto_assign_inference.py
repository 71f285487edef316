"""Detections of AutoAssign against loops over single numbers."""

import math

import pytest
import torch
from auto_assign_cases import SHAPES, random_predictions, tiny_auto_assign
from detectron2.structures import ImageList
from fcos_cases import STRIDES, K, slow_nms

FEATURES = [torch.zeros(2, 32, *s) for s in SHAPES]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_inference(model, predictions, n, image_size, topk):
    """Detections of image n with one number at a time: boxes, scores, classes."""
    boxes, scores, classes = [], [], []
    for level, stride in enumerate(STRIDES.values()):
        logits, distances, objectness = (p[level][n] for p in predictions)
        cells = []
        for i in range(logits.shape[1]):
            for j in range(logits.shape[2]):
                p = [sigmoid(x) for x in logits[:, i, j].tolist()]
                o = sigmoid(objectness[0, i, j].item())
                cells.append((max(p) * o, p, o, i, j))
        cells.sort(reverse=True)
        for _, probabilities, o, i, j in cells[:topk]:
            left, top, right, bottom = distances[:, i, j].tolist()
            x = [min(max(v, 0), image_size[1]) for v in (j * stride - left, j * stride + right)]
            y = [min(max(v, 0), image_size[0]) for v in (i * stride - top, i * stride + bottom)]
            for k, p in enumerate(probabilities):
                if p > model.test_score_thresh:
                    boxes.append([x[0], y[0], x[1], y[1]])
                    scores.append(p * o)
                    classes.append(k)
    return slow_nms(model, boxes, scores, classes)


@pytest.mark.parametrize("topk, threshold, limit", [(1000, 0.0, 1000), (20, 0.45, 30), (3, 0.5, 8)])
def test_inference_equals_loops_and_leaves_predictions_alone(topk, threshold, limit):
    model = tiny_auto_assign(
        test_topk_candidates=topk, test_score_thresh=threshold, max_detections_per_image=limit
    ).eval()
    predictions = random_predictions(torch.Generator().manual_seed(0), 2)
    before = [x.clone() for level in predictions for x in level]
    images = ImageList(torch.zeros(2, 3, 64, 64), [(48, 64), (64, 30)])
    results = model.forward_inference(images, FEATURES, predictions)
    after = [x for level in predictions for x in level]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [r.image_size for r in results] == images.image_sizes
    for n, (result, size) in enumerate(zip(results, images.image_sizes, strict=True)):
        boxes, scores, classes = slow_inference(model, predictions, n, size, topk)
        assert 0 < len(scores) <= limit
        torch.testing.assert_close(result.scores, scores)
        torch.testing.assert_close(result.pred_boxes.tensor, boxes)
        assert torch.equal(result.pred_classes, classes)


def test_objectness_ranks_locations_and_the_class_alone_passes_the_threshold():
    model = tiny_auto_assign(test_topk_candidates=1, test_score_thresh=0.3).eval()
    logits, distances, objectness = (
        [torch.full((1, c, *s), -9.0) for s in SHAPES] for c in (K, 4, 1)
    )
    distances = [x.abs() for x in distances]
    logits[0][0, :, 2, 3] = torch.tensor([2.0, -2.0, 1.0])
    objectness[0][0, 0, 2, 3] = -1.0
    logits[0][0, 1, 4, 4] = 3.0  # the best class, on what seems no object
    images = ImageList(torch.zeros(1, 3, 48, 64), [(48, 64)])
    predictions = (logits, distances, objectness)
    result = model.forward_inference(images, [f[:1] for f in FEATURES], predictions)[0]
    assert result.pred_classes.tolist() == [0, 2]
    expected = [sigmoid(x) * sigmoid(-1) for x in (2, 1)]  # below the threshold
    assert result.scores.tolist() == pytest.approx(expected)
    assert result.pred_boxes.tensor.tolist() == [[15, 7, 33, 25]] * 2  # around (24, 16)
