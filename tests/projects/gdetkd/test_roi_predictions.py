"""What box heads predict: class scores and boxes of the classes that the teacher sees."""

import pytest
import torch
from tiny_models import build, random_batch

from kd_d2.modeling.regions import Regions, SeenRegions
from kd_d2.projects.gdetkd.predictions import class_aware_box_loss, class_loss
from kd_d2.projects.gdetkd.roi_predictions import RoIBoxKD, RoIClassKD

HEADS = ("RoIClassKD", "RoIBoxKD")


def test_differences_of_opposite_sign_cancel():
    """0.36 with the absolute value inside of the sum over the classes."""
    teacher = torch.tensor([[[0.3, 0.1, 0, 0], [0.1, 0, 0.2, 0]]])
    student = torch.tensor([[[0.1, 0.0, 0, 0], [0.5, 0, 0.0, 0]]])
    loss = class_aware_box_loss(student, teacher, torch.tensor([[0.6, 0.3]]))
    assert loss.item() == pytest.approx(0.12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = class_aware_box_loss(student, teacher, torch.tensor([[0.6, 0.3]]))
    assert torch.equal(low, loss)


def test_the_divergence_is_the_teacher_s_from_the_student_s():
    teacher, student = torch.tensor([[2.0, 0, 1]]), torch.tensor([[1.0, 0, 1]])
    assert class_loss(student, teacher).item() == pytest.approx(0.119630, abs=1e-6)
    assert class_loss(teacher, student).item() != pytest.approx(0.119630, abs=1e-3)
    assert class_loss(teacher, teacher).item() == 0


def both(cfg):
    model = build(cfg).train()
    model.student.load_state_dict(model.teacher.detector.state_dict())
    return model


@pytest.mark.parametrize("head", HEADS)
def test_equal_detectors_have_no_loss(head, frozen_cfg, storage):
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS = [head]
    losses = both(cfg)(random_batch())
    (name,) = (name for name in losses if "roi_" in name)
    assert losses[name].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("objects", [(2, 1), (0, 0)])
def test_gradients_into_the_student_alone(head, objects, frozen_cfg, storage):
    cfg = frozen_cfg("MaskRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS = [head]
    model = build(cfg).train()
    losses = model(random_batch(masks=True, objects=objects))
    (name,) = (name for name in losses if "roi_" in name)
    losses[name].backward()
    assert losses[name] > 0 and model.student.roi_heads.box_head.fc1.weight.grad.any()
    assert all(p.grad is None for p in model.teacher.detector.parameters())


def view(regions):
    return type("View", (), {"regions": regions})


def seen(logits, deltas, classes=None):
    count = len(logits)
    regions = Regions(torch.zeros(count, 4), [count], torch.ones(count, dtype=torch.bool))
    return view(SeenRegions(regions, logits=logits, deltas=deltas, classes=classes))


def test_classes_of_a_teacher_in_another_order():
    """Teacher: a, b, c; student: c, a. Scores over all of the teacher's classes weigh the boxes."""
    logits, deltas = torch.randn(5, 4), torch.randn(5, 3, 4)
    own_logits, own_deltas = torch.randn(5, 3), torch.randn(5, 2, 4)
    student, teacher = seen(own_logits, own_deltas), seen(logits, deltas, [2, 0])
    loss = RoIClassKD()(student, teacher, [])["loss_roi_class_kd"]
    assert loss.item() == pytest.approx(class_loss(own_logits, logits[:, [2, 0, 3]]).mean().item())
    head = RoIBoxKD()
    head.scale = [1.0] * 4
    p = logits.softmax(1)
    expected = (p[:, 2, None] * (deltas[:, 2] - own_deltas[:, 0])) + (
        p[:, 0, None] * (deltas[:, 0] - own_deltas[:, 1])
    )
    loss = head(student, teacher, [])["loss_roi_box_kd"]
    assert loss.item() == pytest.approx(expected.abs().sum(1).mean().item(), rel=1e-5)


def test_no_regions():
    student = seen(torch.zeros(0, 4), torch.zeros(0, 3, 4))
    head = RoIBoxKD()
    head.scale = [1.0] * 4
    assert head(student, student, [])["loss_roi_box_kd"] == 0
    assert RoIClassKD()(student, student, [])["loss_roi_class_kd"] == 0


def test_units_of_the_boxes_may_differ(frozen_cfg, storage):
    """The same boxes in other units are the same boxes."""
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS = ["RoIBoxKD"]
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (20.0, 20.0, 5.0, 2.5)
    model = both(cfg)
    scale = torch.tensor([2.0, 2.0, 1.0, 0.5]).repeat(3)
    with torch.no_grad():
        predictor = model.student.roi_heads.box_predictor.bbox_pred
        predictor.weight.mul_(scale[:, None])
        predictor.bias.mul_(scale)
    assert model(random_batch())["loss_roi_box_kd"].item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_sigmoid_scores_are_refused(head, frozen_cfg):
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS = [head]
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    with pytest.raises(ValueError, match=f"{head} .* softmax .* the student's are sigmoids"):
        build(cfg)


def test_another_number_of_classes_is_refused(frozen_cfg):
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS = ["RoIClassKD"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    with pytest.raises(ValueError, match="the student has 2 classes, the teacher 3"):
        build(cfg)
