"""CKD: the loss against a loop, its negatives, the queue, and the head."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from region_cases import batch_for, both_views, distiller
from tiny_models import build
from torch.nn import functional as F

from kd_d2.modeling.regions import Regions, SeenRegions
from kd_d2.projects.gdetkd.ckd import CKD, AnchorLinear
from kd_d2.projects.gdetkd.contrast import contrastive_logits, contrastive_loss, overlapping
from kd_d2.projects.gdetkd.queue import VectorQueue

STUDENT = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
TEACHER = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0, 1]])
BOXES = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])


@pytest.mark.parametrize(
    "temperature,exclude,queue,expected",
    [
        (0.5, False, [], [0.627123, 0.952984, 0.751250]),
        (0.5, True, [], [0.183901, 0.513015, 0.751250]),
        (0.5, True, [[-1.0, 0], [0, -1]], [0.358455, 0.552969, 0.821232]),
        (0.07, False, [], [0.055854, 0.483753, 0.058958]),
    ],
)
def test_worked_numbers(temperature, exclude, queue, expected):
    teacher = torch.cat((TEACHER, torch.tensor(queue).view(-1, 2)))
    excluded = F.pad(overlapping(BOXES, torch.zeros(3), 0.5), (0, len(queue))) if exclude else None
    losses = contrastive_loss(contrastive_logits(STUDENT, teacher, temperature), excluded)
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_own_pair_stays_even_where_the_mask_has_it():
    """Without it the losses would be -1.6, -0.4 and 0.113015, as in public code."""
    with_own = pairwise_iou(Boxes(BOXES), Boxes(BOXES)) > 0.5
    assert with_own.diagonal().all()
    losses = contrastive_loss(contrastive_logits(STUDENT, TEACHER, 0.5), with_own)
    assert losses.tolist() == pytest.approx([0.183901, 0.513015, 0.751250], abs=1e-6)


def test_boxes_of_other_images_are_never_excluded():
    boxes = BOXES.repeat(2, 1)
    images = torch.tensor([0, 0, 0, 1, 1, 1])
    expected = torch.zeros(6, 6, dtype=torch.bool)
    for i, j in ((0, 1), (1, 0), (3, 4), (4, 3)):
        expected[i, j] = True
    assert torch.equal(overlapping(boxes, images, 0.5), expected)
    # IoU of the pair is 0.667
    assert not overlapping(boxes, images, 0.67).any()


def test_large_logits():
    """exp(1 / 0.01) is beyond float32."""
    vectors = torch.eye(3).half()
    losses = contrastive_loss(contrastive_logits(vectors, vectors, 0.005))
    assert losses.dtype == torch.float32 and losses.tolist() == [0, 0, 0]


def test_the_queue_is_a_ring():
    queue = VectorQueue(5, 2)
    assert queue.content().shape == (0, 2)
    rows = torch.arange(24.0).view(12, 2)
    queue.push(rows[:3])
    assert torch.equal(queue.content(), rows[:3])
    queue.push(rows[3:7])
    assert {tuple(x.tolist()) for x in queue.content()} == {tuple(x.tolist()) for x in rows[2:7]}
    queue.push(rows[:0])
    assert len(queue.content()) == 5 and queue.next == 2
    queue.push(rows)
    assert {tuple(x.tolist()) for x in queue.content()} == {tuple(x.tolist()) for x in rows[7:]}


def test_the_queue_is_kept_in_checkpoints_and_empty_in_a_new_run():
    queue, other = VectorQueue(4, 2), VectorQueue(4, 2)
    queue.push(torch.ones(3, 2))
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.content(), queue.content()) and other.next == 3
    other.start_run()
    assert other.content().shape == (0, 2) and other.next == 0


def test_no_queue():
    queue = VectorQueue(0, 2)
    queue.push(torch.ones(3, 2))
    assert queue.content().shape == (0, 2)


def head(dim=6, queue=8, projection="shared", **kwargs):
    ckd = CKD(projection=projection, projection_dim=4, queue_size=queue, **kwargs)
    ckd.adapter = None
    ckd.projection = torch.nn.Linear(dim, 4 if projection == "shared" else dim, bias=False)
    ckd.queue = VectorQueue(queue, dim)
    return ckd


def seen(vectors, boxes=None, counts=None, locations=None):
    count = len(vectors)
    if boxes is None:
        corners = torch.rand(count, 2) * 20
        boxes = torch.cat((corners, corners + 10), 1)
    foreground = torch.ones(count, dtype=torch.bool)
    regions = Regions(boxes, counts or [count], foreground, locations)
    return SeenRegions(regions, vectors=vectors)


class View:
    def __init__(self, regions):
        self.regions = regions


def slowly(ckd, own, aims, boxes, images, negatives):
    """Pair by pair, as the formula is written."""
    project = ckd.projection
    theirs = project if ckd.shared else (lambda x: x)
    losses = []
    for i in range(len(own)):
        total = None
        for j in range(len(own)):
            iou = pairwise_iou(Boxes(boxes[i : i + 1]), Boxes(boxes[j : j + 1])).item()
            if i != j and images[i] == images[j] and iou > ckd.iou_threshold:
                continue
            g = torch.exp(
                F.cosine_similarity(project(own[i]), theirs(aims[j]), 0) / ckd.temperature
            )
            total = g if total is None else total + g
            if i == j:
                pair = g
        for x in negatives:
            with torch.no_grad():
                key = theirs(x)
            total = total + torch.exp(
                F.cosine_similarity(project(own[i]), key, 0) / ckd.temperature
            )
        losses.append(-torch.log(pair / total))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("projection", ["shared", "student_only"])
@pytest.mark.parametrize("feature", ["before_relu", "after_relu"])
def test_the_head_is_the_formula(projection, feature):
    ckd = head(projection=projection, feature=feature, weight=0.5, temperature=0.2)
    own, aims = torch.randn(7, 6, requires_grad=True), torch.randn(7, 6)
    student = seen(own, counts=[4, 3])
    earlier = torch.randn(3, 6)
    ckd.queue.push(earlier)
    boxes, images = student.regions.boxes, student.regions.images
    assert overlapping(boxes, images, 0.5).any()
    relu = torch.relu if feature == "after_relu" else (lambda x: x)
    expected = 0.5 * slowly(ckd, relu(own), relu(aims), boxes, images, earlier)
    wanted = torch.autograd.grad(expected, (own, ckd.projection.weight))
    loss = ckd(View(student), View(seen(aims)), [])["loss_ckd"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for x, y in zip(torch.autograd.grad(loss, (own, ckd.projection.weight)), wanted, strict=True):
        assert torch.allclose(x, y, atol=1e-6)
    # this batch joins the queue afterwards, as it is before the projection
    assert {tuple(x.tolist()) for x in ckd.queue.content()[-8:]} >= {
        tuple(x.tolist()) for x in relu(aims)[-5:]
    }


def test_negatives_of_other_processes(monkeypatch):
    ckd = head(queue=0)
    own, aims, others = torch.randn(3, 6), torch.randn(3, 6), torch.randn(5, 6)
    boxes, images = BOXES, torch.zeros(3)
    monkeypatch.setattr("kd_d2.projects.gdetkd.ckd.comm.get_rank", lambda: 1)
    loss = ckd.loss(own, aims, boxes, images, [others, aims])
    assert loss.item() == pytest.approx(
        slowly(ckd, own, aims, boxes, images, others).item(), rel=1e-4
    )


def test_no_region_is_a_loss_of_0_with_gradients():
    ckd = head()
    empty = seen(torch.zeros(0, 6), torch.zeros(0, 4), [0, 0])
    loss = ckd(View(empty), View(empty), [])["loss_ckd"]
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in ckd.parameters())


def test_one_region_without_negatives():
    ckd = head(queue=0)
    one = seen(torch.randn(1, 6))
    assert ckd(View(one), View(seen(torch.randn(1, 6))), [])["loss_ckd"] == 0


def test_it_computes_in_float32():
    ckd = head()
    own, aims = seen(torch.randn(4, 6)), seen(torch.randn(4, 6))
    expected = ckd.loss(
        own.vectors, aims.vectors, own.regions.boxes, own.regions.images, [aims.vectors]
    )
    ckd.queue.start_run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ckd(View(own), View(aims), [])["loss_ckd"]
    assert loss.dtype == torch.float32 and torch.equal(loss, 0.5 * expected)


def test_a_linear_layer_for_each_anchor():
    layer = AnchorLinear(4, 3, 2)
    x, anchors = torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 1])
    of_anchors = layer.linear.weight.view(2, 3, 4)
    for row, anchor, out in zip(x, anchors, layer(x, anchors), strict=True):
        assert torch.allclose(out, of_anchors[anchor] @ row, atol=1e-6)
    assert layer.linear.bias is None


@pytest.mark.parametrize(
    "student", ["FasterRCNN", "MaskRCNN", "CascadeRCNN", "RetinaNet", "FCOS", "DDOD"]
)
def test_students(student, frozen_cfg, storage):
    model = distiller(frozen_cfg, student, "FasterRCNN", ["CKD"], BATCH_SIZE_PER_IMAGE=30)
    for filled in (False, True):
        loss = model(batch_for(student))["loss_ckd"]
        loss.backward()
        assert loss > 0 and (storage.latest()["ckd/queue"][0] > 0) == filled
    assert model.student.backbone.fpn_lateral5.weight.grad.any()
    assert all(p.grad.any() for p in model.heads.parameters())
    assert all(p.grad is None for p in model.teacher.detector.parameters())


def test_box_heads_of_unequal_width(frozen_cfg, storage):
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = ["CKD"], 20
    model = build(cfg).train()
    model(batch_for("FasterRCNN"))["loss_ckd"].backward()
    assert model.heads["CKD"].adapter.weight.grad.shape == (32, 20)


def test_objects_that_no_location_predicted_are_left_out(frozen_cfg):
    model = distiller(frozen_cfg, "RetinaNet", "FasterRCNN", ["CKD", "SGFI"], APPEND_GT=True)
    student, teacher = both_views(model, batch_for("RetinaNet"))
    added = student.regions.regions.locations == -1
    assert added.sum() == 3
    own, aims, boxes, images = model.heads["CKD"].vectors(student.regions, teacher.regions)
    assert len(own) == len(aims) == len(boxes) == len(images) == len(added) - 3
    assert torch.equal(aims, teacher.regions.vectors[~added])
