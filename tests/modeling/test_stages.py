"""The stages of stock detectors give what the detectors themselves give."""

import pytest
import torch
from torch import nn

from kd_d2.modeling import DetectorStages, Stage, ViewRequest, build_stages, register_stages
from kd_d2.modeling.stages import substituted

ARCHS = ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN", "CascadeRCNN"]
ALL = ViewRequest(Stage.LOSSES)


def gt_of(batch):
    return [x["instances"] for x in batch]


def seeded_losses(function):
    torch.manual_seed(1)  # The R-CNNs sample anchors and proposals at random.
    return function()


@pytest.mark.parametrize("arch", ARCHS)
def test_losses_equal_the_detectors_own(arch, tiny_cfg, build, random_batch, storage):
    detector = build(tiny_cfg(arch)).train()
    batch = random_batch(masks=arch == "MaskRCNN")
    own = seeded_losses(lambda: detector(batch))
    detector.__dict__.pop("loss_normalizer", None)  # RetinaNet's running mean of positives.
    view = seeded_losses(lambda: build_stages(detector).run(batch, ALL, gt_of(batch)))
    assert view.losses.keys() == own.keys()
    for name, loss in own.items():
        assert torch.equal(view.losses[name], loss), name


@pytest.mark.parametrize("arch", ARCHS)
def test_inference_equals_the_detectors_own(arch, tiny_cfg, build, random_batch):
    cfg = tiny_cfg(arch)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    detector = build(cfg).eval()
    batch = random_batch()
    stages = build_stages(detector)
    with torch.no_grad():
        own = detector(batch)
        images = stages.preprocess(batch)
        ours = stages.inference(images, stages.features(images), batch)
    assert sum(len(x["instances"]) for x in own) > 0
    for a, b in zip(own, ours, strict=True):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)


@pytest.mark.parametrize("arch", ["RetinaNet", "FCOS", "FasterRCNN"])
def test_another_assignment_replaces_the_own(arch, tiny_cfg, build, random_batch, storage):
    detector = build(tiny_cfg(arch)).train()
    stages = build_stages(detector)
    batch = random_batch()
    view = stages.run(batch, ALL, gt_of(batch))
    args = (view.images, view.features, view.predictions)
    nothing = [x[:0] for x in gt_of(batch)]
    assignment = stages.assign(*args, nothing)
    used, losses = stages.losses(*args, gt_of(batch), assignment)
    assert used is assignment
    # Nobody is positive, so there is no box to regress, although the ground truth has objects.
    assert losses["loss_box_reg"] == 0 < view.losses["loss_box_reg"]


def test_requests_run_no_stage_too_many(tiny_cfg, build, random_batch):
    detector = build(tiny_cfg()).eval()
    calls = []
    detector.head.register_forward_hook(lambda *_: calls.append(1))
    stages = build_stages(detector)
    view = stages.run(random_batch(), ViewRequest())
    assert not calls and view.predictions is None
    assert [f.shape[1:] for f in view.features.values()][0] == (32, 8, 12)
    assert list(view.features) == list(stages.feature_shapes) == ["p3", "p4", "p5", "p6", "p7"]
    view = stages.run(random_batch(), ViewRequest(Stage.PREDICTIONS))
    assert len(calls) == 1 and view.predictions is not None and not view.losses


def test_assignment_without_ground_truth_is_refused(tiny_cfg, build, random_batch):
    with pytest.raises(ValueError, match="ASSIGNMENT needs ground truth"):
        build_stages(build(tiny_cfg())).run(random_batch(), ViewRequest(Stage.ASSIGNMENT))


def test_taps_keep_the_outputs_of_every_call(tiny_cfg, build, random_batch):
    stages = build_stages(build(tiny_cfg()).eval())
    request = ViewRequest(Stage.PREDICTIONS, ("head.cls_subnet", "backbone.fpn_lateral3"))
    view = stages.run(random_batch(), request)
    assert [x.shape[2] for x in view.taps["head.cls_subnet"]] == [8, 4, 2, 1, 1]
    assert len(view.taps["backbone.fpn_lateral3"]) == 1
    assert not stages.detector.head.cls_subnet._forward_hooks


def test_unknown_tap_names_the_nearest(tiny_cfg, build, random_batch):
    stages = build_stages(build(tiny_cfg()))
    with pytest.raises(KeyError, match=r"no submodule 'head.cls_subne' to tap.*head.cls_subnet"):
        stages.run(random_batch(), ViewRequest(taps=("head.cls_subne",)))


def test_requests_unite():
    a, b = ViewRequest(Stage.LOSSES, ("x",)), ViewRequest(Stage.FEATURES, ("y", "x"))
    assert a | b == ViewRequest(Stage.LOSSES, ("x", "y"))


def test_unknown_family_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"Linear belongs to no known detector family.*register_st"
    ):
        build_stages(nn.Linear(1, 1))


def test_frozen_rcnn_has_no_losses(tiny_cfg, build, random_batch, storage):
    batch = random_batch()
    stages = build_stages(build(tiny_cfg("FasterRCNN")).eval())
    assert stages.run(batch, ViewRequest(Stage.PREDICTIONS)).predictions.losses == {}
    with pytest.raises(RuntimeError, match="no losses"):
        stages.run(batch, ALL, gt_of(batch))


def test_substitution_leaves_no_trace(tiny_cfg, build):
    detector = build(tiny_cfg())
    with pytest.raises(ZeroDivisionError), substituted(detector, "label_anchors", 3):
        assert detector.label_anchors(None, None) == 3
        _ = 1 / 0
    assert "label_anchors" not in detector.__dict__


def test_stock_fcos_of_detectron2_is_a_student(tiny_cfg, build, random_batch, storage):
    """Detectron2 builds its own FCOS from Python only; the stages need nothing more."""
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

    backbone = build(tiny_cfg()).backbone
    levels = ["p3", "p4", "p5", "p6", "p7"]
    head = FCOSHead(
        input_shape=[backbone.output_shape()[f] for f in levels], conv_dims=[32], num_classes=3
    )
    fcos = FCOS(
        backbone=backbone,
        head=head,
        head_in_features=levels,
        num_classes=3,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    ).train()
    batch = random_batch()
    own = fcos(batch)
    del fcos.loss_normalizer
    view = build_stages(fcos).run(batch, ALL, gt_of(batch))
    assert {k: v.item() for k, v in own.items()} == {k: v.item() for k, v in view.losses.items()}
    assert len(view.assignment) == 2


class HeatmapDetector(nn.Module):
    """A family that kd_d2 never heard of: one heat map, no anchors, no Detectron2 base class."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.heat = nn.Conv2d(8, 1, 1)


def test_a_new_family_takes_a_few_lines(random_batch, storage):
    from detectron2.layers import ShapeSpec
    from detectron2.structures import ImageList

    from kd_d2.modeling import FrozenTeacher, FrozenTeacherDistiller
    from kd_d2.modeling.heads.pkd import PKD

    @register_stages(HeatmapDetector)
    class HeatmapStages(DetectorStages):
        feature_shapes = {"trunk": ShapeSpec(channels=8, stride=4)}
        num_classes = 1

        def preprocess(self, batched_inputs):
            return ImageList.from_tensors([x["image"] / 255.0 for x in batched_inputs])

        def features(self, images):
            return {"trunk": self.detector.trunk(images.tensor)}

        def predict(self, images, features, gt=None):
            return self.detector.heat(features["trunk"])

        def losses(self, images, features, predictions, gt, assignment=None):
            return None, {"loss_heat": predictions.square().mean()}

    student, teacher = HeatmapDetector(), FrozenTeacher(detector=HeatmapDetector())
    shapes = HeatmapStages.feature_shapes
    head = PKD(student_shapes=shapes, teacher_shapes=shapes)
    model = FrozenTeacherDistiller(student=student, teacher=teacher, heads={"PKD": head}).train()
    losses = model(random_batch())
    assert losses.keys() == {"loss_heat", "loss_pkd"}
    sum(losses.values()).backward()
    assert student.trunk.weight.grad.abs().sum() > 0
