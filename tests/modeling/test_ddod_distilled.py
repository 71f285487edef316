"""DDOD as stages, with its own assignment and a teacher's, and its detections."""

import pytest
import torch
from atss_cases import tiny_atss
from ddod_cases import spread, tiny_ddod
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from fcos_cases import BATCH, EMPTY, STRIDES, K
from tiny_models import build, lgd_cfg, random_batch

from kd_d2.modeling import build_stages
from kd_d2.modeling.dense_stages import DenseStages
from kd_d2.modeling.views import Stage, ViewRequest

LOSSES = {"loss_cls", "loss_box_reg", "loss_iou"}
GT = [x["instances"] for x in BATCH]


def same(assignment, other):
    pairs = zip(sum(assignment, []), sum(other, []), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_stages_reproduce_the_detector():
    stages = build_stages(spread(tiny_ddod()))
    assert type(stages) is DenseStages and not stages.shares_assignment
    view = stages.run(BATCH, ViewRequest(Stage.LOSSES), GT)
    for name, value in spread(tiny_ddod())(BATCH).items():
        torch.testing.assert_close(view.losses[name], value)
    assert same(stages.assign(view.images, view.features, view.predictions, GT), view.assignment)


def test_a_teacher_assigns():
    student, teacher = (build_stages(spread(tiny_ddod(seed=s))) for s in (0, 1))
    knowledge = teacher.run(BATCH, ViewRequest(Stage.ASSIGNMENT), GT)
    view = student.run(BATCH, ViewRequest(Stage.LOSSES), GT, assign_by=knowledge.predictions)
    assert same(view.assignment, knowledge.assignment)
    own = build_stages(spread(tiny_ddod())).run(BATCH, ViewRequest(Stage.LOSSES), GT)
    assert not same(view.assignment, own.assignment)
    assert view.losses["loss_cls"] != own.losses["loss_cls"]
    # counts what it learns, in the student alone
    labels = torch.stack(knowledge.assignment[1])
    assert student.detector.box_positives.sum() == ((labels >= 0) & (labels < K)).sum() > 0
    assert not teacher.detector.box_positives.any()


def test_taps_are_after_the_deformable_blocks():
    stages = build_stages(tiny_ddod())
    view = stages.run(BATCH, ViewRequest(taps=("cls_tower.0",), stage=Stage.PREDICTIONS), GT)
    feature = list(view.features.values())[0]
    tower = stages.detector.head.cls_subnet
    torch.testing.assert_close(view.taps["cls_tower.0"][0], tower[2](tower[1](tower[0](feature))))


@pytest.mark.parametrize("objects", [(2, 1), (0, 0)])
def test_student_of_lgd(objects):
    """It assigns twice: by the student's predictions, and by those from the teacher's features."""
    torch.manual_seed(0)
    model = build(lgd_cfg("DDOD")).train()
    calls, label_anchors = [], model.student.label_anchors
    model.student.label_anchors = lambda *args: calls.append(1) or label_anchors(*args)
    with EventStorage(0):
        losses = model(random_batch(objects=objects))
    assert losses.keys() > LOSSES | {f"{name}.tea" for name in LOSSES} and calls == [1, 1]
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_detections_are_those_of_atss():
    settings = {"test_topk_candidates": 20, "test_score_thresh": 0.45}
    generator = torch.Generator().manual_seed(0)
    shapes = [(64 // s, 96 // s) for s in STRIDES.values()]
    predictions = tuple(
        [torch.randn(2, c, *s, generator=generator) for s in shapes] for c in (K, 4, 1)
    )
    images = ImageList(torch.zeros(2, 3, 64, 96), [(60, 96), (64, 50)])
    features = [torch.zeros(2, 32, *s) for s in shapes]
    results = [
        model.eval().forward_inference(images, features, predictions)
        for model in (tiny_ddod(**settings), tiny_atss(**settings))
    ]
    for mine, theirs in zip(*results, strict=True):
        assert len(mine) > 5
        assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(mine.scores, theirs.scores)


def test_overfits_a_batch():
    """Its own predictions decide what it learns; that must not keep it from learning."""
    model, history = tiny_ddod(), []
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(15):
        losses = model(BATCH)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(sum(losses.values()).item())
    assert history[-1] < 0.6 * history[0]


def test_empty_batches_leave_the_counts_alone():
    model = spread(tiny_ddod())
    model(BATCH)
    before = model.cls_positives.tolist()
    model([EMPTY, EMPTY])
    assert model.cls_positives.tolist() == before
