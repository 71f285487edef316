"""Score voting, and the detections of PAA, against hand-computed values and loops."""

import math

import pytest
import torch
from atss_cases import slow_decode
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList
from fcos_cases import BATCH, STRIDES, K, slow_nms
from paa_cases import sigmoid, slow_vote, tiny_paa

from kd_d2.modeling.detectors.score_voting import vote_boxes


def vote(boxes, classes, candidates, scores, of):
    """Lists of numbers in, a list of boxes out."""
    tensors = (torch.tensor(x) for x in (boxes, classes, candidates, scores, of))
    return vote_boxes(*tensors).tolist()


def approx(*boxes, **kwargs):
    return [pytest.approx(box, **kwargs) for box in boxes]


FIRST, SECOND = [0.0, 0, 10, 10], [1.0, 0, 11, 10]  # IoU 9 / 11


def test_by_hand():
    """Weights 0.9 and 0.6 * exp(-(2 / 11)^2 / 0.025) = 0.159911."""
    voted = vote([FIRST], [1], [FIRST, SECOND], [0.9, 0.6], [1, 1])
    assert voted == approx([0.150872, 0, 10.150872, 10], abs=1e-5)
    # seen from the other, the scores change their places
    voted = vote([SECOND], [1], [FIRST, SECOND], [0.9, 0.6], [1, 1])
    nearness = math.exp(-((2 / 11) ** 2) / 0.025)
    x = 0.6 / (0.6 + 0.9 * nearness)
    assert voted == approx([x, 0, 10 + x, 10], abs=1e-5)


def test_other_classes_have_no_vote():
    candidates, scores = [FIRST, SECOND, FIRST, SECOND], [0.9, 0.6, 0.3, 0.2]
    voted = vote([FIRST, SECOND], [0, 2], candidates, scores, [0, 1, 1, 2])
    assert voted == approx(FIRST, SECOND)


def test_alone_a_detection_stays_where_it_is():
    """With neighbours below an IoU of 0.01 and others that are only near in number."""
    box = [3.25, 7.5, 40.125, 60.0625]
    far = [40.0, 60, 80, 90]
    voted = vote([box], [0], [box, far], [0.05, 1.0], [0, 0])
    assert voted == approx(box, rel=1e-6)


def test_an_iou_of_a_hundredth_must_be_exceeded():
    """IoU 1 / 100 exactly, then a little more; exp(-38.4) shows in a score of 1e17."""
    box, score = [0.0, 0, 10, 10], 1e17
    assert vote([box], [0], [box, [0.0, 0, 1, 1]], [1.0, score], [0, 0]) == approx(box)
    voted = vote([box], [0], [box, [0.0, 0, 2, 1]], [1.0, score], [0, 0])
    weight = score * math.exp(-(0.98**2) / 0.025)
    assert weight > 1
    expected = [0, 0, (10 + 2 * weight) / (1 + weight), (10 + weight) / (1 + weight)]
    assert voted == approx(expected, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_equals_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    corner, size = (torch.rand(80, 2, generator=generator) * 8 for _ in range(2))
    boxes = torch.cat((corner, corner + 24 + size), dim=1)
    scores = torch.rand(80, generator=generator)
    classes = torch.randint(3, (80,), generator=generator)
    found = vote_boxes(boxes[:20], classes[:20], boxes, scores, classes)
    everything, moved = (boxes.tolist(), scores.tolist(), classes.tolist()), 0
    for i in range(20):
        expected = slow_vote(boxes[i].tolist(), classes[i].item(), *everything)
        assert found[i].tolist() == pytest.approx(expected, rel=1e-4)
        moved += (found[i] - boxes[i]).abs().amax() > 0.1
    assert moved > 10


def test_nothing_to_vote_on():
    nothing = torch.zeros(0, dtype=torch.long)
    no_boxes = torch.zeros(0, 4)
    assert vote_boxes(no_boxes, nothing, no_boxes, nothing.float(), nothing).shape == (0, 4)


def test_a_box_without_area_stays_where_it_is():
    """As clipping leaves of a box outside of the image: it is no neighbour even of itself."""
    line = [0.0, 2, 0, 8]
    assert vote([line, FIRST], [0, 0], [line, FIRST], [0.9, 0.8], [0, 0]) == approx(line, FIRST)


def test_inputs_are_left_alone_and_nothing_is_learned():
    boxes, scores, classes = torch.tensor([FIRST, SECOND]), torch.tensor([0.9, 0.6]), torch.zeros(2)
    boxes.requires_grad_()
    scores.requires_grad_()
    before = boxes.detach().clone(), scores.detach().clone()
    assert not vote_boxes(boxes, classes, boxes, scores, classes).requires_grad
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


# ---- detections

SHAPES = [(64 // s, 96 // s) for s in STRIDES.values()]


def random_predictions(iou_branch=True):
    generator = torch.Generator().manual_seed(0)
    channels = [(K, 1.5), (4, 3)] + [(1, 1)] * iou_branch
    return tuple(
        [torch.randn(2, c, *s, generator=generator) * scale for s in SHAPES]
        for c, scale in channels
    )


def infer(model, predictions, sizes):
    images = ImageList(torch.zeros(len(sizes), 3, 64, 96), sizes)
    features = [torch.zeros(len(sizes), 32, *s) for s in SHAPES]
    return model.eval().forward_inference(images, features, predictions)


def slow_inference(model, predictions, n, size):
    """Detections of image n with one number at a time: boxes, scores, classes."""
    found = []
    for level, stride in enumerate(STRIDES.values()):
        outputs = [p[level][n] for p in predictions]
        height, width = (math.ceil(side / 32) * 32 // stride for side in size)
        cells = []
        for i in range(height):
            for j in range(width):
                logits, deltas, *quality = (x[:, i, j].tolist() for x in outputs)
                scores = [sigmoid(z) for z in logits]
                if quality:
                    scores = [math.sqrt(p * sigmoid(quality[0][0])) for p in scores]
                anchor = [x * stride for x in (j - 1, i - 1, j + 1, i + 1)]
                box = slow_decode(deltas, anchor)
                box = [min(max(x, 0), size[1 - k % 2]) for k, x in enumerate(box)]
                cells.append((max(scores), scores, box))
        cells.sort(reverse=True)
        for _, scores, box in cells[: model.test_topk_candidates]:
            found += [(box, s, k) for k, s in enumerate(scores) if s > model.test_score_thresh]
    candidates = tuple(map(list, zip(*found, strict=True)))
    boxes, scores, classes = slow_nms(model, *candidates)
    if model.score_voting:
        pairs = zip(boxes.tolist(), classes.tolist(), strict=True)
        boxes = torch.tensor([slow_vote(b, k, *candidates) for b, k in pairs])
    return boxes, scores, classes


@pytest.mark.parametrize("iou_branch", [True, False])
@pytest.mark.parametrize("voting", [True, False])
@pytest.mark.parametrize("topk, threshold, limit", [(1000, 0.0, 1000), (20, 0.6, 30), (3, 0.5, 8)])
def test_inference_equals_loops(topk, threshold, limit, voting, iou_branch):
    model = tiny_paa(
        iou_branch=iou_branch,
        score_voting=voting,
        test_topk_candidates=topk,
        test_score_thresh=threshold,
        max_detections_per_image=limit,
    )
    predictions, sizes = random_predictions(iou_branch), [(60, 96), (64, 50)]
    before = [x.clone() for level in predictions for x in level]
    results = infer(model, predictions, sizes)
    after = [x for level in predictions for x in level]
    assert all(map(torch.equal, before, after))
    for n, (result, size) in enumerate(zip(results, sizes, strict=True)):
        boxes, scores, classes = slow_inference(model, predictions, n, size)
        assert 0 < len(scores) <= limit
        torch.testing.assert_close(result.scores, scores)
        torch.testing.assert_close(result.pred_boxes.tensor, boxes, atol=1e-3, rtol=1e-4)
        assert torch.equal(result.pred_classes, classes)


def logits_of(*cells):
    """Predictions of one image, -9 but for some classes at some cells of P3: (y, x, logits, IoU).

    Boxes are the anchors; IoU logits are 0 elsewhere.
    """
    logits, deltas, quality = ([torch.zeros(1, c, *s) for s in SHAPES] for c in (K, 4, 1))
    for level in logits:
        level.fill_(-9.0)
    for y, x, z, q in cells:
        logits[0][0, :, y, x] = torch.tensor(z)
        quality[0][0, 0, y, x] = q
    return logits, deltas, quality


def logit(p):
    return math.log(p / (1 - p))


def test_the_threshold_is_of_the_root():
    """sqrt(0.3 * 0.9) = 0.52 is above one half though 0.3 is not; sqrt(0.6 * 0.4) is not."""
    model = tiny_paa(test_score_thresh=0.5)
    predictions = logits_of(
        (2, 2, [logit(0.3), -9, -9], logit(0.9)), (5, 8, [-9, logit(0.6), -9], logit(0.4))
    )
    (result,) = infer(model, predictions, [(64, 96)])
    assert result.scores.tolist() == pytest.approx([math.sqrt(0.27)])
    assert result.pred_classes.tolist() == [0]
    assert result.pred_boxes.tensor[0].tolist() == pytest.approx([8, 8, 24, 24])


def test_a_level_keeps_its_best_anchors_with_all_their_classes():
    """The best by the final score, which the anchor of the higher probability is not."""
    model = tiny_paa(test_topk_candidates=1, test_score_thresh=0.3)
    best = [logit(0.8), -9, logit(0.4)]
    predictions = logits_of((2, 2, best, logit(0.9)), (5, 8, [-9, logit(0.9), -9], logit(0.7)))
    (result,) = infer(model, predictions, [(64, 96)])
    assert result.pred_classes.tolist() == [0, 2]
    assert result.scores.tolist() == pytest.approx([math.sqrt(0.72), math.sqrt(0.36)])
    model.test_topk_candidates = 2
    assert len(infer(model, predictions, [(64, 96)])[0]) == 3


def test_detections_move_to_their_suppressed_neighbours_and_keep_their_scores():
    """Anchors of 16 at x = 8 and 16, y = 8: moved by one pixel each, their IoU is 14 * 16 / 288."""
    cells = ((1, 1, [logit(0.81), -9, -9], 9.0), (1, 2, [logit(0.49), -9, -9], 9.0))
    logits, deltas, quality = logits_of(*cells)
    deltas[0][0, 0, 1, 2] = -10 * 6 / 16  # six pixels to the left: two from the first
    still, moved = (
        infer(
            tiny_paa(test_score_thresh=0.3, score_voting=v), (logits, deltas, quality), [(64, 96)]
        )[0]
        for v in (False, True)
    )
    assert len(still) == len(moved) == 1 and torch.equal(still.scores, moved.scores)
    assert still.pred_boxes.tensor[0].tolist() == pytest.approx([0, 0, 16, 16])
    nearness = math.exp(-((1 - 14 / 18) ** 2) / 0.025)
    x = 2 * 0.7 * nearness / (0.9 + 0.7 * nearness)
    assert moved.pred_boxes.tensor[0].tolist() == pytest.approx([x, 0, 16 + x, 16], abs=1e-3)


def test_a_detection_outside_of_the_image():
    """Clipping leaves no area of it: nothing comes of it, and the others are as without."""
    model = tiny_paa(test_score_thresh=0.3)
    logits, deltas, quality = logits_of((0, 0, [2.0, -9, -9], 2.0), (4, 4, [-9, 2.0, -9], 2.0))
    deltas[0][0, 0, 0, 0] = -20.0  # two widths to the left
    (result,) = infer(model, (logits, deltas, quality), [(64, 96)])
    assert result.pred_boxes.tensor.isfinite().all()
    result = detector_postprocess(result, 64, 96)
    assert result.pred_classes.tolist() == [1]
    assert result.pred_boxes.tensor[0].tolist() == pytest.approx([24, 24, 40, 40])


@pytest.mark.parametrize("voting", [True, False])
def test_nothing_found(voting):
    model = tiny_paa(test_score_thresh=0.99, score_voting=voting)
    for result in infer(model, random_predictions(), [(64, 96), (64, 50)]):
        assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("iou_branch", [True, False])
@pytest.mark.parametrize("objectness", ["cop", "iop"])
def test_an_objectness_trains_and_detects(objectness, iou_branch):
    model = tiny_paa(objectness=objectness, iou_branch=iou_branch, test_score_thresh=0.001)
    losses = model(BATCH)
    sum(losses.values()).backward()
    assert len(losses) == 2 + iou_branch
    result = model.eval()([{"image": BATCH[0]["image"]}])[0]["instances"]
    assert len(result) > 0 and result.scores.gt(0.001).all() and result.scores.le(1).all()
