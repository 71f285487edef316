"""Which regions: candidates by the best class, samples of them, jittered objects."""

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torchvision.ops import nms

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.regions.choosing import (
    Candidates,
    RegionSettings,
    class_max_candidates,
    jittered_objects,
    sample_regions,
)

SIZES = [(8, 8), (4, 4), (2, 2)]
IMAGES = [(64, 64), (48, 60)]


def predictions(per_cell=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum(h * w for h, w in SIZES) * per_cell
    centres = torch.rand(2, count, 2, generator=generator) * 80 - 8
    halves = torch.rand(2, count, 2, generator=generator) * 16
    return DensePredictions(
        logits=torch.randn(2, count, 3, generator=generator),
        boxes=torch.cat((centres - halves, centres + halves), -1),
        points=torch.zeros(count, 2),
        strides=torch.ones(count),
        valid=torch.rand(2, count, generator=generator) > 0.1,
        sizes=SIZES,
        per_cell=per_cell,
    )


def slow(decoded, image, settings):
    """(score, location, box) of one image, one candidate after the other."""
    h, w = IMAGES[image]
    found, start = [], 0
    for rows, columns in SIZES:
        count = rows * columns * decoded.per_cell
        of_level = [
            (decoded.logits[image, a].max().item(), a)
            for a in range(start, start + count)
            if decoded.valid[image, a]
        ]
        start += count
        kept = []
        for score, a in sorted(of_level, reverse=True)[: settings.topk_per_level]:
            x1, y1, x2, y2 = decoded.boxes[image, a].tolist()
            box = [min(max(x1, 0), w), min(max(y1, 0), h), min(max(x2, 0), w), min(max(y2, 0), h)]
            if box[2] > box[0] and box[3] > box[1]:
                kept.append((score, a, box))
        boxes = torch.tensor([box for *_, box in kept])
        found += [
            kept[i] for i in nms(boxes, torch.tensor([s for s, *_ in kept]), settings.nms_thresh)
        ]
    return sorted(found, reverse=True)[: settings.max_per_image]


@pytest.mark.parametrize("per_cell", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"topk_per_level": 20}, {"max_per_image": 7}])
def test_candidates_are_those_of_a_loop(per_cell, settings):
    settings = RegionSettings(nms_thresh=0.3, **settings)
    decoded = predictions(per_cell)
    for image, found in enumerate(class_max_candidates(decoded, IMAGES, settings)):
        expected = slow(decoded, image, settings)
        assert found.locations.tolist() == [a for _, a, _ in expected]
        assert torch.allclose(found.boxes, torch.tensor([box for *_, box in expected]))


def test_no_candidate_is_possible():
    decoded = predictions()
    decoded.valid[:] = False
    for found in class_max_candidates(decoded, IMAGES, RegionSettings()):
        assert found.boxes.shape == (0, 4) and len(found.locations) == 0


def test_predictions_that_are_not_finite_are_no_candidates():
    decoded = predictions()
    decoded.boxes[0, 3, 1] = torch.inf
    decoded.boxes[0, 4] = torch.nan
    found = class_max_candidates(decoded, IMAGES, RegionSettings(nms_thresh=1.0))[0]
    assert not {3, 4} & set(found.locations.tolist()) and found.boxes.isfinite().all()


def objects(*boxes):
    return Instances((64, 64), gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)))


@pytest.fixture
def candidates():
    """One image with 8 near an object and 30 far away, one image with 3."""
    near = torch.tensor([10.0, 10, 30, 30]) + torch.arange(8)[:, None] * 0.25
    far = torch.tensor([40.0, 40, 50, 50]) + torch.arange(30)[:, None] * 0.25
    first = torch.cat((near, far))
    return [
        Candidates(first, torch.arange(38) + 100),
        Candidates(torch.rand(3, 4).cumsum(1), torch.arange(3)),
    ]


def test_positives_are_a_quarter_at_most(candidates):
    gt = [objects([10.0, 10, 30, 30]), objects()]
    settings = RegionSettings(batch_size_per_image=16)
    regions = sample_regions(candidates, gt, settings)
    assert regions.counts == [16, 3] and regions.foreground.tolist() == [True] * 4 + [False] * 15
    assert regions.images.tolist() == [0] * 16 + [1] * 3
    for box, location in zip(regions.boxes[:16], regions.locations[:16], strict=True):
        assert torch.equal(box, candidates[0].boxes[location - 100])
    iou = pairwise_iou(gt[0].gt_boxes, Boxes(regions.boxes[:16]))[0]
    assert torch.equal(iou >= 0.5, regions.foreground[:16])


def test_negatives_fill_up(candidates):
    """There are fewer positives than a quarter."""
    regions = sample_regions(candidates[:1], [objects([10.0, 10, 30, 30])], RegionSettings())
    assert regions.counts == [38] and regions.foreground.sum() == 8


def test_an_iou_of_half_is_positive():
    found = [Candidates(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9.9]]))]
    regions = sample_regions(found, [objects([0.0, 0, 10, 20])], RegionSettings())
    assert torch.equal(regions.foreground, regions.boxes[:, 3] == 10) and len(regions) == 2
    assert regions.locations is None


def test_objects_can_be_added(candidates):
    gt = [objects([10.0, 10, 30, 30]), objects([1.0, 1, 9, 9])]
    regions = sample_regions(candidates, gt, RegionSettings(append_gt=True))
    added = regions.locations == -1
    assert torch.equal(regions.boxes[added], torch.cat([x.gt_boxes.tensor for x in gt]))
    assert regions.foreground[added].all() and regions.counts == [39, 4]


def test_foreground_alone(candidates):
    regions = sample_regions(candidates, [objects([10.0, 10, 30, 30]), objects()], RegionSettings())
    only = regions.of_foreground()
    assert only.counts == [8, 0] and only.foreground.all()
    assert torch.equal(only.boxes, regions.boxes[regions.foreground])
    assert torch.equal(only.locations, regions.locations[regions.foreground])


@pytest.mark.parametrize("jitter", [0.0, 0.2, 0.9])
def test_jittered_objects(jitter):
    gt = [objects([10.0, 10, 30, 50], [0.0, 0, 64, 64]), objects()]
    settings = RegionSettings(jitter=jitter, jittered_per_object=50)
    regions = jittered_objects(gt, [(64, 64), (64, 64)], settings)
    assert regions.counts == [100, 0] and regions.foreground.all() and regions.locations is None
    moved = (regions.boxes - gt[0].gt_boxes.tensor.repeat(50, 1)).abs()
    size = torch.tensor([[20.0, 40.0], [64, 64]]).repeat(50, 2)
    assert (moved <= (jitter * size if jitter < 0.5 else size) + 1e-4).all()
    assert moved.max() >= 0.9 * jitter * 40
    assert regions.boxes.min() >= 0 and regions.boxes.max() <= 64
    assert (regions.boxes[:, 2:] >= regions.boxes[:, :2]).all()


def test_no_region_at_all():
    regions = sample_regions([Candidates(torch.zeros(0, 4))], [objects()], RegionSettings())
    assert len(regions) == 0 and regions.rois().shape == (0, 5)
    assert [len(x) for x in regions.per_image()] == [0]
