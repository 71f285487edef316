"""Detections and decoded predictions of GFL against loops over single numbers."""

import math

import pytest
import torch
from detectron2.structures import ImageList
from fcos_cases import STRIDES, K, slow_nms
from gfl_cases import REG_MAX, SHAPES, slow_sides, tiny_gfl

FEATURES = [torch.zeros(2, 32, *s) for s in SHAPES]
IMAGES = ImageList(torch.zeros(2, 3, 64, 96), [(60, 96), (64, 50)])


def random_predictions(n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        [torch.randn(n, c, *s, generator=generator) * scale for s in SHAPES]
        for c, scale in ((K, 1), (4 * (REG_MAX + 1), 3))
    )


def slow_box(bins, i, j, stride):
    left, top, right, bottom = (side * stride for side in slow_sides(bins))
    x, y = j * stride, i * stride
    return [x - left, y - top, x + right, y + bottom]


def slow_inference(model, predictions, n, image_size, topk):
    """Detections of image n with one number at a time: boxes, scores, classes."""
    boxes, scores, classes = [], [], []
    for level, stride in enumerate(STRIDES.values()):
        logits, bins = (p[level][n] for p in predictions)
        height, width = (math.ceil(side / 32) * 32 // stride for side in image_size)
        cells = []
        for i in range(height):
            for j in range(width):
                p = [1 / (1 + math.exp(-x)) for x in logits[:, i, j].tolist()]
                cells.append((max(p), p, i, j))
        cells.sort(reverse=True)
        for _, probabilities, i, j in cells[:topk]:
            x1, y1, x2, y2 = slow_box(bins[:, i, j].tolist(), i, j, stride)
            for k, p in enumerate(probabilities):
                if p > model.test_score_thresh:
                    xs = [min(max(x, 0), image_size[1]) for x in (x1, x2)]
                    ys = [min(max(y, 0), image_size[0]) for y in (y1, y2)]
                    boxes.append([xs[0], ys[0], xs[1], ys[1]])
                    scores.append(p)
                    classes.append(k)
    return slow_nms(model, boxes, scores, classes)


@pytest.mark.parametrize("topk, threshold, limit", [(1000, 0.0, 1000), (20, 0.45, 30), (3, 0.5, 8)])
def test_inference_equals_loops_and_leaves_predictions_alone(topk, threshold, limit):
    model = tiny_gfl(
        test_topk_candidates=topk, test_score_thresh=threshold, max_detections_per_image=limit
    ).eval()
    predictions = random_predictions()
    before = [x.clone() for level in predictions for x in level]
    results = model.forward_inference(IMAGES, FEATURES, predictions)
    after = [x for level in predictions for x in level]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [r.image_size for r in results] == IMAGES.image_sizes
    for n, (result, size) in enumerate(zip(results, IMAGES.image_sizes, strict=True)):
        boxes, scores, classes = slow_inference(model, predictions, n, size, topk)
        assert 0 < len(scores) <= limit
        torch.testing.assert_close(result.scores, scores)
        torch.testing.assert_close(result.pred_boxes.tensor, boxes, atol=1e-3, rtol=1e-5)
        assert torch.equal(result.pred_classes, classes)


def test_boxes_are_decoded_in_strides_from_the_centre():
    model = tiny_gfl()
    bins = torch.full((4, REG_MAX + 1), -99.0)
    bins[[0, 1, 2, 3], [1, 0, 3, 4]] = 99.0
    anchors, strides = torch.tensor([[8.0, 8, 24, 24], [0, 16, 64, 80]]), torch.tensor([8.0, 32])
    boxes = model.decode_boxes(bins.flatten().expand(2, -1), anchors, strides)
    assert boxes.tolist() == [[8, 16, 40, 48], [0, 48, 128, 176]]


def test_decoded_predictions_equal_loops():
    model = tiny_gfl()
    predictions = random_predictions()
    decoded = model.decode_predictions(IMAGES, FEATURES, predictions)
    assert decoded.sizes == SHAPES and decoded.per_cell == 1
    logits, valid = decoded.split_levels(decoded.logits), decoded.split_levels(decoded.valid)
    boxes = decoded.split_levels(decoded.boxes)
    points = decoded.split_levels(decoded.points, 0)
    strides = decoded.split_levels(decoded.strides, 0)
    for level, stride in enumerate(STRIDES.values()):
        height, width = SHAPES[level]
        assert strides[level].tolist() == [stride] * (height * width)
        for n, (_, image_width) in enumerate(IMAGES.image_sizes):
            for i in range(height):
                for j in range(width):
                    r = i * width + j
                    assert torch.equal(logits[level][n, r], predictions[0][level][n, :, i, j])
                    assert points[level][r].tolist() == [j * stride, i * stride]
                    assert valid[level][n, r] == (j * stride < math.ceil(image_width / 32) * 32)
                    box = slow_box(predictions[1][level][n, :, i, j].tolist(), i, j, stride)
                    assert boxes[level][n, r].tolist() == pytest.approx(box, rel=1e-4, abs=1e-3)


def test_decoded_boxes_are_not_clipped_and_float32():
    model = tiny_gfl()
    half = tuple([x.half() for x in level] for level in random_predictions())
    decoded = model.decode_predictions(IMAGES, FEATURES, half)
    assert decoded.boxes.dtype == torch.float32 and decoded.boxes.amin() < 0
