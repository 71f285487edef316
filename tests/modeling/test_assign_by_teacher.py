"""The teacher says which anchors of the student learn which object (LAD)."""

import logging

import pytest
import torch
from detectron2.data import MetadataCatalog

BY_PREDICTIONS = ("DDOD", "PAA")


@pytest.fixture
def taught_cfg(frozen_cfg):
    def make(student, teacher=None, **settings):
        cfg = frozen_cfg(student, teacher or student)
        cfg.MODEL.KD.ASSIGN_BY = "teacher"
        return cfg

    return make


def recorded(detector):
    """What ``label_anchors`` of a detector returns from now on."""
    seen, label = [], detector.label_anchors

    def record(*args):
        seen.append(label(*args))
        return seen[-1]

    detector.__dict__["label_anchors"] = record
    return seen


@pytest.mark.parametrize("arch", BY_PREDICTIONS)
def test_the_labels_are_the_teachers(arch, taught_cfg, build, random_batch, storage):
    model = build(taught_cfg(arch)).train()
    batch = random_batch()
    by_teacher, by_student = recorded(model.teacher.detector), recorded(model.student)
    view, _ = model.both_views(batch, [x["instances"] for x in batch])
    assert len(by_teacher) == 1 and not by_student
    for used, given in zip(view.assignment, by_teacher[0], strict=True):
        for x, y in zip(used, given, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("arch", BY_PREDICTIONS)
def test_a_teacher_with_the_students_weights_gives_the_students_labels(
    arch, taught_cfg, build, random_batch, storage
):
    model = build(taught_cfg(arch)).eval()
    model.student.load_state_dict(model.teacher.detector.state_dict())
    batch = random_batch()
    gt = [x["instances"] for x in batch]
    own = model.stages.run(batch, model.teacher.request, gt).assignment
    taught = model.teacher(batch, gt).assignment
    for x, y in zip(own[0], taught[0], strict=True):
        assert torch.equal(x, y) and ((x >= 0) & (x < 3)).any()


@pytest.mark.parametrize("arch", BY_PREDICTIONS)
def test_the_students_losses_follow_it(arch, taught_cfg, build, random_batch, storage):
    model = build(taught_cfg(arch)).train()
    by_teacher = model(random_batch())
    model.assign_by_teacher = False
    by_itself = model(random_batch())
    assert by_teacher.keys() == by_itself.keys()
    assert by_teacher["loss_cls"] != by_itself["loss_cls"]
    torch.testing.assert_close(by_teacher["loss_pkd"], by_itself["loss_pkd"])


@pytest.mark.parametrize("arch", BY_PREDICTIONS)
@pytest.mark.parametrize("objects", [(0, 1), (0, 0)])
def test_images_without_objects(arch, objects, taught_cfg, build, random_batch, storage):
    model = build(taught_cfg(arch)).train()
    sum(model(random_batch(objects=objects)).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "student,teacher",
    [("ATSS", "PAA"), ("PAA", "ATSS"), ("PAA", "DDOD"), ("DDOD", "PAA"), ("ATSS", "DDOD"),
     ("PAA", "GFL"), ("DDOD", "ATSS")],
)  # fmt: skip
def test_other_detectors_with_the_same_anchors(
    student, teacher, taught_cfg, build, random_batch, storage
):
    model = build(taught_cfg(student, teacher)).train()
    batch = random_batch()
    gt = [x["instances"] for x in batch]
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    view, taught = model.both_views(batch, gt)
    *_, labels, boxes = taught.assignment
    assert len(view.assignment) == (3 if student == "DDOD" else 2)
    for used in view.assignment[:-1]:
        assert torch.equal(torch.stack(used), torch.stack(labels))
    assert torch.equal(torch.stack(view.assignment[-1]), torch.stack(boxes))


def test_a_retinanet_with_such_anchors(taught_cfg, build, random_batch, storage):
    cfg = taught_cfg("RetinaNet", "PAA")
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8.0 * s] for s in (8, 16, 32, 64, 128)]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    model = build(cfg).train()
    losses = model(random_batch())
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] > 0


@pytest.mark.parametrize(
    "student,teacher,reason",
    [
        ("RetinaNet", "PAA", "the student's anchors of a cell are"),
        ("FCOS", "PAA", "a FCOS predicts distances from a point"),
        ("GFL", "PAA", "a GFL predicts distances from a point"),
        ("PAA", "FCOS", "the anchors of both must be the same"),
        ("PAA", "AutoAssign", "the teacher, a AutoAssign, does not say"),
        ("FasterRCNN", "PAA", "the student, a GeneralizedRCNN, does not say"),
        ("PAA", "FasterRCNN", "the teacher, a GeneralizedRCNN, does not say"),
    ],
)
def test_others_are_refused(student, teacher, reason, taught_cfg, build):
    cfg = taught_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = []
    with pytest.raises(ValueError, match=f"ASSIGN_BY is teacher, .*{reason}"):
        build(cfg)


@pytest.mark.parametrize("key,value", [("ANCHOR_SCALE", 4.0), ("ANCHOR_OFFSET", 0.5)])
def test_other_anchors_are_refused(key, value, taught_cfg, build):
    cfg = taught_cfg("PAA")
    cfg.MODEL.PAA[key] = value
    with pytest.raises(ValueError, match="the anchors of both must be the same"):
        build(cfg)


def test_labels_by_rules_alone_are_the_students_own(taught_cfg, build, caplog):
    with caplog.at_level(logging.WARNING):
        build(taught_cfg("ATSS"))
    assert "the teacher's are the student's own" in caplog.text


@pytest.mark.parametrize("arch", BY_PREDICTIONS)
def test_no_head_is_needed(arch, taught_cfg, build, random_batch, storage):
    cfg = taught_cfg(arch)
    cfg.MODEL.KD.HEADS = []
    model = build(cfg).train()
    losses = model(random_batch())
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_iou"}
    assert not any(name.startswith(("teacher", "heads")) for name in model.state_dict())


def test_boxes_count_equally_where_a_teacher_assigns(taught_cfg, frozen_cfg, build):
    cfg = taught_cfg("PAA")
    assert build(cfg).student.box_loss_weighting == "none"
    cfg.MODEL.PAA.BOX_LOSS_WEIGHTING = "iou"
    assert build(cfg).student.box_loss_weighting == "iou"
    assert build(frozen_cfg("PAA", "PAA")).student.box_loss_weighting == "iou"
    cfg = taught_cfg("PAA")
    cfg.MODEL.KD.ENABLED = False
    assert build(cfg).student.box_loss_weighting == "iou"
    cfg.MODEL.META_ARCHITECTURE = "PAA"
    assert build(cfg).box_loss_weighting == "iou"


@pytest.mark.parametrize(
    "key,value", [("ASSIGN_BY", "teacher"), ("INHERIT", ["head"]), ("LABEL_LOSSES", False)]
)
def test_they_need_a_frozen_teacher(key, value, lgd_cfg, build):
    cfg = lgd_cfg()
    cfg.MODEL.KD[key] = value
    with pytest.raises(ValueError, match=f"MODEL.KD.{key} is "):
        build(cfg)


@pytest.mark.parametrize("arch", BY_PREDICTIONS)
def test_classes_in_another_order(arch, taught_cfg, build, random_batch, storage):
    MetadataCatalog.get("ordered_things").thing_classes = ["cat", "dog", "bird"]
    cfg = taught_cfg(arch)
    cfg.DATASETS.TRAIN = ("ordered_things",)
    cfg.MODEL.KD.TEACHER.CLASSES = ["cat", "dog", "bird"]
    batch = random_batch(objects=(3, 2))
    gt = [x["instances"] for x in batch]
    labels = build(cfg).teacher
    labels.request = type(labels.request)(stage=3)
    same = labels(batch, gt).assignment
    # the same teacher, whose outputs and names are both turned round
    cfg.MODEL.KD.TEACHER.CLASSES = ["dog", "bird", "cat"]
    turned = build(cfg).teacher
    turned.request = labels.request
    head = turned.detector.head.cls_score
    with torch.no_grad():
        head.weight.copy_(head.weight[[1, 2, 0]].clone())
    other = turned(batch, gt).assignment
    for x, y in zip(same[0], other[0], strict=True):
        assert torch.equal(x, y)


def test_inherited_heads_want_the_same_order(frozen_cfg, build):
    MetadataCatalog.get("ordered_things").thing_classes = ["cat", "dog", "bird"]
    cfg = frozen_cfg("DDOD", "DDOD")
    cfg.DATASETS.TRAIN = ("ordered_things",)
    cfg.MODEL.KD.INHERIT = ["head"]
    cfg.MODEL.KD.TEACHER.CLASSES = ["cat", "dog", "bird"]
    build(cfg)
    cfg.MODEL.KD.TEACHER.CLASSES = ["dog", "cat", "bird"]
    with pytest.raises(ValueError, match="MODEL.KD.INHERIT .*order"):
        build(cfg)
