"""What every dense detector must do, whatever its losses are."""

from functools import partial

import pytest
import torch
from atss_cases import tiny_atss
from auto_assign_cases import tiny_auto_assign
from ddod_cases import tiny_ddod
from fcos_cases import BATCH, STRIDES, tiny_fcos
from gfl_cases import tiny_gfl
from paa_cases import tiny_paa

from kd_d2.modeling.detectors import one_per_cell

DETECTORS = {
    "FCOS": tiny_fcos,
    "FCOS, IoU loss": partial(tiny_fcos, box_loss="iou"),
    "ATSS": tiny_atss,
    "ATSS, centerness": partial(tiny_atss, branch="centerness"),
    "GFL": tiny_gfl,
    "AutoAssign": tiny_auto_assign,
    "DDOD": tiny_ddod,
    "PAA": tiny_paa,
    "PAA, COP": partial(tiny_paa, objectness="cop"),
    "PAA, IOP without IoU": partial(tiny_paa, objectness="iop", iou_branch=False),
}
ASSIGNING = ["FCOS", "FCOS, IoU loss", "ATSS", "ATSS, centerness", "GFL"]


# detector, loss weight -> the loss
WEIGHTS = {
    ("ATSS", "box"): "loss_box_reg",
    ("ATSS", "branch"): "loss_iou",
    ("GFL", "box"): "loss_box_reg",
    ("GFL", "dfl"): "loss_dfl",
    ("DDOD", "box"): "loss_box_reg",
    ("DDOD", "iou"): "loss_iou",
    ("PAA", "iou"): "loss_iou",  # that of the boxes is in the costs, too
}


def build(name, **settings):
    model = DETECTORS[name](**settings)
    if name == "GFL":  # so that its weights sum to more than 1
        model.head.cls_score.bias.data.fill_(0.0)
    return model


@pytest.mark.parametrize("name, key", WEIGHTS)
def test_loss_weights_are_factors(name, key):
    once = build(name, **{f"{key}_loss_weight": 1.0})(BATCH)
    thrice = build(name, **{f"{key}_loss_weight": 3.0})(BATCH)
    for loss in once:
        factor = 3 if loss == WEIGHTS[name, key] else 1
        torch.testing.assert_close(thrice[loss], once[loss] * factor)


@pytest.mark.parametrize("name", DETECTORS)
def test_duplicated_batch_has_equal_losses(name):
    model = build(name)
    once, twice = model(BATCH), model(BATCH + BATCH)
    for key in once:
        torch.testing.assert_close(once[key], twice[key])


@pytest.mark.parametrize("name", DETECTORS)
def test_normalisers_are_means_over_gpus(name, monkeypatch):
    """Twice as many positives on the other GPU: the mean is 1.5 times ours; not of PAA."""
    model = build(name)
    alone = model(BATCH)
    monkeypatch.setattr(one_per_cell.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.mul_(3))
    for key, value in model(BATCH).items():
        # AutoAssign averages this one over the images of a GPU, PAA everything over its positives
        factor = 1.0 if key == "loss_center" or name.startswith("PAA") else 1.5
        torch.testing.assert_close(value, alone[key] / factor)


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_are_float32_under_autocast(name):
    model = build(name)
    plain = model(BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(BATCH)
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, plain[key], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("name", ASSIGNING)
def test_a_foreign_assignment_is_used(name):
    model, calls = build(name), []
    number = sum((64 // s) * (96 // s) for s in STRIDES.values())

    def label_anchors(anchors, gt_instances):
        calls.append(len(gt_instances))
        # object far away from most anchors, without area, and some anchors ignored
        labels = torch.full((number,), 1)
        labels[:10] = -1
        return [labels] * 2, [torch.tensor([[5.0, 5, 5, 30]]).expand(number, 4)] * 2

    model.label_anchors = label_anchors
    losses = model([BATCH[0], BATCH[0]])
    sum(losses.values()).backward()
    assert calls == [2]
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", DETECTORS)
def test_nothing_found(name):
    model = build(name, test_score_thresh=0.99).eval()
    result = model([{"image": BATCH[0]["image"]}])[0]["instances"]
    assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("name", DETECTORS)
def test_outputs_are_in_the_requested_size(name):
    model = build(name).eval()
    if name.startswith("FCOS"):  # its first boxes are empty
        torch.nn.init.constant_(model.head.bbox_pred.bias, 0.5)
    result = model([{"image": BATCH[0]["image"], "height": 128, "width": 192}])[0]["instances"]
    assert result.image_size == (128, 192) and len(result) > 0
    assert result.pred_boxes.tensor.amax() > 100
