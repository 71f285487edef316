"""GFL as student of LGD and PKD, as frozen teacher, as stages: nothing there knows of it."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_models import build, lgd_cfg, random_batch, tiny_cfg

from kd_d2.modeling import build_stages
from kd_d2.modeling.dense_stages import DenseStages
from kd_d2.modeling.views import Stage, ViewRequest

LOSSES = {"loss_cls", "loss_box_reg", "loss_dfl"}


def step(model, batch):
    torch.manual_seed(0)
    with EventStorage(0):
        losses = model.train()(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return losses


@pytest.mark.parametrize("objects", [(2, 1), (0, 0)])
def test_student_of_lgd(objects):
    model = build(lgd_cfg("GFL"))
    losses = step(model, random_batch(objects=objects))
    assert losses.keys() > LOSSES | {f"{name}.tea" for name in LOSSES}


@pytest.mark.parametrize("student, teacher", [("GFL", "RetinaNet"), ("FCOS", "GFL")])
def test_pkd_with_a_frozen_teacher(student, teacher, tmp_path):
    frozen = tiny_cfg(teacher)
    torch.save({"model": build(frozen).state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "teacher.yaml").write_text(frozen.dump())
    cfg = tiny_cfg(student)
    cfg.MODEL.KD.STUDENT = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "FrozenTeacherDistiller"
    cfg.MODEL.KD.HEADS = ["PKD"]
    node = cfg.MODEL.KD.TEACHER
    node.NAME, node.REQUIRE_SAME_CLASSES = "Frozen", False
    node.CONFIG_FILE, node.WEIGHTS = str(tmp_path / "teacher.yaml"), str(tmp_path / "teacher.pth")
    losses = step(build(cfg), random_batch())
    assert any("pkd" in name.lower() for name in losses)


def test_stages_reproduce_the_detector():
    model, batch = build(tiny_cfg("GFL")).train(), random_batch()
    stages = build_stages(model)
    assert type(stages) is DenseStages and stages.num_classes == model.num_classes
    gt = [x["instances"] for x in batch]
    view = stages.run(batch, ViewRequest(Stage.LOSSES), gt)
    for name, value in model(batch).items():
        torch.testing.assert_close(view.losses[name], value)
    labels, boxes = stages.assign(view.images, view.features, view.predictions, gt)
    for mine, theirs in zip(labels + boxes, sum(view.assignment, []), strict=True):
        assert torch.equal(mine, theirs)
