"""Two processes whose heads compare regions: unequal counts, empty ranks, one queue."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils import comm
from tiny_models import frozen_cfg, random_batch
from torch.nn import functional as F
from two_processes import STEPS, assert_equal_weights, assert_two_are_one, in_two_processes, worker

from kd_d2 import get_kd_cfg
from kd_d2.modeling.gathering import gather_rows
from kd_d2.modeling.regions import Regions, SeenRegions

SIZES = ((64, 64), (64, 64))


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    def cfg(student, heads, **regions):
        torch.manual_seed(0)
        cfg = frozen_cfg(tmp_path_factory.mktemp("teacher"), student, "FasterRCNN")
        cfg.SOLVER.MAX_ITER = STEPS
        cfg.SOLVER.BASE_LR = 1e-8  # features of a random network are large
        cfg.MODEL.KD.HEADS = list(heads)
        cfg.MODEL.KD.CKD.QUEUE_SIZE = 50
        # only this process's vectors have a gradient through a projection of the teacher's
        cfg.MODEL.KD.CKD.PROJECTION = "student_only"
        for key, value in regions.items():
            cfg.MODEL.KD.REGIONS[key] = value
        return cfg

    rcnn = ["SGFI", "CKD", "RoIClassKD", "RoIBoxKD"]
    different = random_batch(SIZES, objects=(3, 2))
    with_empty = random_batch(SIZES, objects=(2, 0))
    shared = cfg("FasterRCNN", rcnn)
    shared.MODEL.KD.CKD.PROJECTION = "shared"
    return {
        "R-CNN": (cfg("FasterRCNN", rcnn), different, 0),
        "shared": (shared, different, 0),
        "no regions on a rank": (cfg("FasterRCNN", rcnn, SUBSET="foreground"), with_empty, 0),
        "no regions on a rank, dense": (
            cfg("RetinaNet", ["SGFI", "CKD"], SUBSET="foreground", IOU_THRESHOLD=0.05),
            with_empty,
            0,
        ),
        "unequal counts": (cfg("RetinaNet", ["SGFI", "CKD"]), different, 0),
        "no regions at all": (
            cfg("RetinaNet", ["SGFI"], SOURCE="gt_jitter"),
            random_batch(SIZES, objects=(0, 0)),
            0,
        ),
    }


@pytest.fixture(scope="module")
def ranks(scenarios, tmp_path_factory):
    return in_two_processes(worker, scenarios, tmp_path_factory.mktemp("ranks"))


def test_two_processes_are_one_with_the_same_batch(scenarios, ranks):
    """Both have 16 regions of each image, so that means over regions are equal."""
    assert_two_are_one(scenarios["R-CNN"], ranks[0]["R-CNN"])


def test_all_ranks_go_on_with_equal_weights_and_queues(scenarios, ranks):
    for name in scenarios:
        first, second = (rank[name][1] for rank in ranks)
        assert_equal_weights([rank[name] for rank in ranks])
        for key in (k for k in first if ".queue." in k):
            assert torch.equal(first[key], second[key]), (name, key)
        assert all(len(rank[name][0]) == STEPS for rank in ranks)


def test_the_queue_holds_the_regions_of_all(ranks):
    assert ranks[0]["R-CNN"][1]["heads.CKD.queue.filled"] == 50  # 2 x 16 an iteration
    of_one = ranks[0]["no regions on a rank"][1]["heads.CKD.queue.filled"]
    assert 0 < of_one < 50


def gathers(counts, output):
    rank = comm.get_rank()
    found = []
    for of_ranks in counts:
        x = torch.arange(of_ranks[rank] * 3.0).view(-1, 3) + 100 * rank
        found.append(gather_rows(x.requires_grad_()))
    torch.save(found, f"{output}/rank{rank}.pth")


def test_rows_of_all_processes(tmp_path):
    counts = [(4, 2), (0, 3), (1, 0), (0, 0)]
    first, second = in_two_processes(gathers, counts, tmp_path)
    for of_ranks, a, b in zip(counts, first, second, strict=True):
        for rank in (0, 1):
            expected = torch.arange(of_ranks[rank] * 3.0).view(-1, 3) + 100 * rank
            assert torch.equal(a[rank], expected) and torch.equal(b[rank], expected)
            assert not a[rank].requires_grad


COUNTS = [(3, 5), (0, 4), (2, 0), (0, 0), (6, 1)]  # regions of both ranks, iteration by iteration
QUEUE = 11


def regions_of(iteration, rank):
    """The student's vectors, the teacher's, boxes of two images, and how many are of the first."""
    generator = torch.Generator().manual_seed(100 * iteration + rank)
    count = COUNTS[iteration][rank]
    corners = torch.rand(count, 2, generator=generator) * 15
    vectors = torch.randn(2, count, 6, generator=generator)
    return *vectors, torch.cat((corners, corners + 10), 1), count // 2


class View:
    def __init__(self, *args, **kwargs):
        self.regions = SeenRegions(*args, **kwargs)


def contrasts(counts, output):
    """Losses and gradients of CKD under DDP, and what is in the queue."""
    get_kd_cfg()
    from kd_d2.projects.gdetkd.ckd import CKD
    from kd_d2.projects.gdetkd.queue import VectorQueue

    torch.manual_seed(0)
    head = CKD(projection_dim=4, queue_size=QUEUE)
    head.adapter, head.queue = None, VectorQueue(QUEUE, 6)
    head.projection = torch.nn.Linear(6, 4, bias=False)
    wrapped = torch.nn.parallel.DistributedDataParallel(head, broadcast_buffers=False)
    found = []
    for iteration in range(len(counts)):
        own, aims, boxes, first = regions_of(iteration, comm.get_rank())
        regions = Regions(boxes, [first, len(boxes) - first], torch.ones(len(boxes)) > 0)
        head.zero_grad()
        views = View(regions, vectors=own), View(regions, vectors=aims)
        loss = wrapped(*views, [])["loss_ckd"]
        loss.backward()
        gradient = head.projection.weight.grad.clone()
        found.append((loss.item(), gradient, head.queue.content().clone()))
    weight = head.projection.weight.detach()
    torch.save((found, weight), f"{output}/rank{comm.get_rank()}.pth")


def slowly(weight, iteration, rank, queue):
    """The loss of a rank, pair by pair."""
    own, aims, boxes, first = regions_of(iteration, rank)
    others = [*regions_of(iteration, 1 - rank)[1], *queue]

    def g(a, b):
        return (F.cosine_similarity(weight @ a, b, 0) / 0.07).exp()

    total = torch.zeros(())
    for i in range(len(own)):
        pair = g(own[i], weight @ aims[i])
        denominator = sum(g(own[i], weight.detach() @ x) for x in others) + pair
        for j in range(len(own)):
            iou = pairwise_iou(Boxes(boxes[i : i + 1]), Boxes(boxes[j : j + 1])).item()
            if i != j and not ((i < first) == (j < first) and iou > 0.5):
                denominator = denominator + g(own[i], weight @ aims[j])
        total = total - (pair / denominator).log()
    return 0.5 * total / max(len(own), 1)


def test_contrasts_are_those_of_a_loop(tmp_path):
    ranks = in_two_processes(contrasts, COUNTS, tmp_path)
    weight, queue = ranks[0][1].clone().requires_grad_(), []
    for iteration in range(len(COUNTS)):
        losses = [slowly(weight, iteration, rank, queue[-QUEUE:]) for rank in (0, 1)]
        gradient = torch.zeros_like(weight)
        if any(loss.requires_grad for loss in losses):
            (gradient,) = torch.autograd.grad(sum(losses) / 2, weight)
        queue += [x for rank in (0, 1) for x in regions_of(iteration, rank)[1]]
        rows = sorted(tuple(x.tolist()) for x in queue[-QUEUE:])
        for loss, (found, _) in zip(losses, ranks, strict=True):
            assert found[iteration][0] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
            assert torch.allclose(found[iteration][1], gradient, atol=1e-5)
            assert sorted(tuple(x.tolist()) for x in found[iteration][2]) == rows


def limits(value, output):
    """tau after a step in which one rank has no regions."""
    get_kd_cfg()
    from detectron2.layers import ShapeSpec

    from kd_d2.projects.gdetkd.sgfi import SGFI

    head = SGFI(student_shapes={"p3": ShapeSpec(channels=2, stride=8)})
    head.log_temperature.data.fill_(value)
    count = 2 * (comm.get_rank() == 0)
    regions = Regions(
        torch.tensor([[0.0, 0, 9, 9]] * count).view(-1, 4), [count], torch.ones(count) > 0
    )
    head.compare = lambda student, regions, target: (target.sum((1, 2, 3)), torch.ones(count, 1))
    view = View(regions, pooled=torch.zeros(count, 2, 7, 7), strides=torch.full((count,), 8.0))
    head(view, view, [])
    torch.save(head.log_temperature.item(), f"{output}/rank{comm.get_rank()}.pth")


def test_the_temperature_is_limited_on_all_ranks(tmp_path):
    first, second = in_two_processes(limits, -9.0, tmp_path)
    assert first == second == pytest.approx(-4.60517)
