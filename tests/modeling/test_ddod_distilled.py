"""DDOD with its own assignment and a teacher's, and its detections."""

import torch
from atss_cases import tiny_atss
from ddod_cases import spread, tiny_ddod
from detectron2.structures import ImageList
from fcos_cases import BATCH, EMPTY, STRIDES, K

from kd_d2.modeling import build_stages
from kd_d2.modeling.views import Stage, ViewRequest

GT = [x["instances"] for x in BATCH]


def same(assignment, other):
    pairs = zip(sum(assignment, []), sum(other, []), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_teacher_assigns():
    student, teacher = (build_stages(spread(tiny_ddod(seed=s))) for s in (0, 1))
    knowledge = teacher.run(BATCH, ViewRequest(Stage.ASSIGNMENT), GT)
    view = student.run(BATCH, ViewRequest(Stage.LOSSES), GT, assignment=knowledge.assignment)
    assert same(view.assignment, knowledge.assignment)
    own = build_stages(spread(tiny_ddod())).run(BATCH, ViewRequest(Stage.LOSSES), GT)
    assert not same(view.assignment, own.assignment)
    assert view.losses["loss_cls"] != own.losses["loss_cls"]
    # counts what it learns, in the student alone
    labels = torch.stack(knowledge.assignment[1])
    assert student.detector.box_positives.sum() == ((labels >= 0) & (labels < K)).sum() > 0
    assert not teacher.detector.box_positives.any()


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
