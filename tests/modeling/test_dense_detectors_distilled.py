"""The dense detectors as students of LGD and PKD, as frozen teachers, as stages."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_models import NUM_CLASSES, build, lgd_cfg, random_batch, tiny_cfg

from kd_d2.modeling import build_stages
from kd_d2.modeling.dense_stages import DenseStages
from kd_d2.modeling.views import Stage, ViewRequest

LOSSES = {
    "FCOS": {"loss_cls", "loss_box_reg", "loss_centerness"},
    "ATSS": {"loss_cls", "loss_box_reg", "loss_iou"},
    "GFL": {"loss_cls", "loss_box_reg", "loss_dfl"},
    "AutoAssign": {"loss_pos", "loss_neg", "loss_center"},
    "DDOD": {"loss_cls", "loss_box_reg", "loss_iou"},
}
# how often a student assigns in a step of LGD: DDOD by each side's predictions, AutoAssign never
ASSIGNMENTS = {"FCOS": 1, "ATSS": 1, "GFL": 1, "AutoAssign": 0, "DDOD": 2}
all_detectors = pytest.mark.parametrize("arch", LOSSES)


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


@all_detectors
@pytest.mark.parametrize("objects", [(2, 1), (0, 0)])
def test_student_of_lgd(arch, objects):
    model, calls = build(lgd_cfg(arch)), []
    if ASSIGNMENTS[arch]:
        label = model.student.label_anchors
        model.student.label_anchors = lambda *args: calls.append(1) or label(*args)
    losses = step(model, random_batch(objects=objects))
    of_teacher = {f"{name}.tea" for name in LOSSES[arch]}
    assert losses.keys() == LOSSES[arch] | of_teacher | {"loss_distill"}
    assert len(calls) == ASSIGNMENTS[arch]


@all_detectors
@pytest.mark.parametrize("as_teacher", [True, False])
def test_pkd_with_a_frozen_teacher_of_another_kind(arch, as_teacher, frozen_cfg):
    pair = ("RetinaNet", arch) if as_teacher else (arch, "RetinaNet")
    assert "loss_pkd" in step(build(frozen_cfg(*pair)), random_batch())


@all_detectors
def test_stages_reproduce_the_detector(arch):
    batch = random_batch()
    gt = [x["instances"] for x in batch]
    model, same = (build(tiny_cfg(arch)).train() for _ in range(2))
    same.load_state_dict(model.state_dict())  # DDOD counts in each pass
    stages = build_stages(model)
    assert type(stages) is DenseStages and stages.num_classes == model.num_classes
    assert list(stages.feature_shapes) == ["p3", "p4", "p5", "p6", "p7"]
    view = stages.run(batch, ViewRequest(Stage.LOSSES), gt)
    for name, value in same(batch).items():
        torch.testing.assert_close(view.losses[name], value)
    assigned = stages.assign(view.images, view.features, view.predictions, gt)
    if ASSIGNMENTS[arch] == 0:
        assert assigned is view.assignment is None
        return
    for mine, theirs in zip(sum(assigned, []), sum(view.assignment, []), strict=True):
        assert torch.equal(mine, theirs)


@all_detectors
def test_decoded_predictions_and_towers(arch):
    model = build(tiny_cfg(arch)).eval()
    request = ViewRequest(Stage.PREDICTIONS, ("cls_tower.0", "box_tower.0"), decoded=True)
    with torch.no_grad():
        view = build_stages(model).run(random_batch(), request)
    shapes = [x.shape[-2:] for x in view.features.values()]
    for outputs in view.taps.values():
        assert [x.shape[-2:] for x in outputs] == shapes and all((x >= 0).all() for x in outputs)
    assert view.decoded.logits.shape == (2, sum(h * w for h, w in shapes), NUM_CLASSES)
    levels = view.decoded.split_levels(view.decoded.logits)
    for mine, theirs in zip(levels, view.predictions[0], strict=True):
        assert torch.equal(mine, theirs.flatten(2).transpose(1, 2))
