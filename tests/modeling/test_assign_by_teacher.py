"""The teacher's predictions decide what the student's learn."""

import pytest
import torch
from detectron2.data import MetadataCatalog


@pytest.fixture
def ddod_cfg(frozen_cfg):
    cfg = frozen_cfg("DDOD", "DDOD")
    cfg.MODEL.KD.ASSIGN_BY = "teacher"
    return cfg


def test_the_assignment_is_the_teachers(ddod_cfg, build, random_batch, storage):
    model = build(ddod_cfg).train()
    batch, seen = random_batch(), []
    label = model.student.label_anchors

    def record(anchors, gt, decoded):
        seen.append((decoded, label(anchors, gt, decoded)))
        return seen[-1][1]

    model.student.label_anchors = record
    model(batch)
    ((decoded, _),) = seen  # once, and by the teacher's predictions
    teacher = model.teacher.detector
    images = teacher.preprocess_image(batch)
    features = [teacher.backbone(images.tensor)[f] for f in teacher.head_in_features]
    with torch.no_grad():
        own = teacher.decode_predictions(images, features, teacher.head(features))
    torch.testing.assert_close(decoded.logits, own.logits)
    torch.testing.assert_close(decoded.boxes, own.boxes)


def test_the_students_losses_follow_it(ddod_cfg, build, random_batch, storage):
    model = build(ddod_cfg).train()
    by_teacher = model(random_batch())
    model.assign_by_teacher = False
    by_itself = model(random_batch())
    assert by_teacher.keys() == by_itself.keys()
    assert by_teacher["loss_cls"] != by_itself["loss_cls"]
    torch.testing.assert_close(by_teacher["loss_pkd"], by_itself["loss_pkd"])


@pytest.mark.parametrize("objects", [(0, 1), (0, 0)])
def test_images_without_objects(objects, ddod_cfg, build, random_batch, storage):
    model = build(ddod_cfg).train()
    sum(model(random_batch(objects=objects)).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("student,teacher", [("ATSS", "ATSS"), ("DDOD", "ATSS"), ("ATSS", "DDOD")])
def test_other_detectors_are_refused(student, teacher, frozen_cfg, build):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.ASSIGN_BY = "teacher"
    with pytest.raises(ValueError, match=f"with a {student} as student and a {teacher} as teacher"):
        build(cfg)


def test_other_anchors_are_refused(ddod_cfg, build):
    ddod_cfg.MODEL.DDOD.ANCHOR_SCALE = 4.0
    with pytest.raises(ValueError, match="needs equal MODEL.DDOD.ANCHOR_SCALE"):
        build(ddod_cfg)


@pytest.mark.parametrize("key,value", [("ASSIGN_BY", "teacher"), ("INHERIT", ["head"])])
def test_they_need_a_frozen_teacher(key, value, lgd_cfg, build):
    cfg = lgd_cfg()
    cfg.MODEL.KD[key] = value
    with pytest.raises(ValueError, match=f"MODEL.KD.{key} is .*needs a frozen teacher"):
        build(cfg)


@pytest.mark.parametrize("key,value", [("ASSIGN_BY", "teacher"), ("INHERIT", ["head"])])
def test_classes_in_another_order_are_refused(key, value, frozen_cfg, build):
    MetadataCatalog.get("ordered_things").thing_classes = ["cat", "dog", "bird"]
    cfg = frozen_cfg("DDOD", "DDOD")
    cfg.DATASETS.TRAIN = ("ordered_things",)
    cfg.MODEL.KD[key] = value
    cfg.MODEL.KD.TEACHER.CLASSES = ["cat", "dog", "bird"]
    build(cfg)
    cfg.MODEL.KD.TEACHER.CLASSES = ["dog", "cat", "bird"]
    with pytest.raises(ValueError, match=f"MODEL.KD.{key} .*order"):
        build(cfg)
