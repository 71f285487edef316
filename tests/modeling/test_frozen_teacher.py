"""A frozen teacher never changes, is never saved, and is refused unless it is whole."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

from kd_d2.modeling import FrozenTeacher, Stage, ViewRequest

PAIRS = [
    ("RetinaNet", "RetinaNet"),
    ("RetinaNet", "FasterRCNN"),
    ("FCOS", "RetinaNet"),
    ("FasterRCNN", "MaskRCNN"),
    ("MaskRCNN", "FCOS"),
    ("CascadeRCNN", "CascadeRCNN"),
]


@pytest.mark.parametrize("student,teacher", PAIRS)
def test_pkd_step_between_detectors(student, teacher, frozen_cfg, build, random_batch, storage):
    model = build(frozen_cfg(student, teacher)).train()
    before = copy.deepcopy(model.teacher.detector.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batch = random_batch(masks=student == "MaskRCNN")
    losses = model(batch)
    assert 0 < losses["loss_pkd"] < 50
    sum(losses.values()).backward()
    optimizer.step()
    after = model.teacher.detector.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert model.student.backbone.fpn_lateral5.weight.grad.abs().sum() > 0


def test_the_teacher_is_no_part_of_the_model(frozen_cfg, build):
    model = build(frozen_cfg())
    assert not any(k.startswith("teacher") for k in model.state_dict())
    assert not list(model.teacher.parameters())
    assert {k.split(".")[0] for k in model.state_dict()} == {"student"}


def test_train_does_not_reach_the_teacher(frozen_cfg, build):
    model = build(frozen_cfg()).train()
    model.teacher.train()
    model.teacher.detector.train()
    assert not any(m.training for m in model.teacher.detector.modules())


def test_only_requested_stages_run(frozen_cfg, build, random_batch, storage):
    model = build(frozen_cfg()).train()
    calls = []
    model.teacher.detector.head.register_forward_hook(lambda *_: calls.append(1))
    model(random_batch())
    assert not calls  # PKD reads features; the teacher's head is not paid for.


def test_dtype_and_device_moves_reach_the_teacher(frozen_cfg, build):
    model = build(frozen_cfg()).double()
    assert next(model.teacher.detector.parameters()).dtype == torch.float64


def test_student_batch_norms_do_not_differ_with_a_teacher(frozen_cfg, build, random_batch, storage):
    cfg = frozen_cfg()
    batch = random_batch()
    with_teacher = build(cfg).train()
    cfg.MODEL.KD.ENABLED = False
    plain = build(cfg).train()
    plain.load_state_dict(with_teacher.state_dict())
    losses, own = with_teacher(batch), plain(batch)
    assert {*losses} - {*own} == {"loss_pkd"}
    for name, loss in own.items():  # RetinaNet's box tower rounds in another order
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-6)


def test_partial_weights_are_refused_unless_allowed(frozen_cfg, build):
    cfg = frozen_cfg()
    checkpoint = torch.load(cfg.MODEL.KD.TEACHER.WEIGHTS)
    del checkpoint["model"]["head.cls_score.weight"]
    torch.save(checkpoint, cfg.MODEL.KD.TEACHER.WEIGHTS)
    with pytest.raises(ValueError, match=r"head.cls_score.weight.*ALLOW_PARTIAL_WEIGHTS"):
        build(cfg)
    cfg.MODEL.KD.TEACHER.ALLOW_PARTIAL_WEIGHTS = True
    assert isinstance(build(cfg).teacher, FrozenTeacher)


@pytest.mark.parametrize(
    "student,teacher,head", [("FCOS", "RetinaNet", "SoftLabel"), ("FCOS", "RetinaNet", "PGD")]
)
def test_pairs_are_refused_before_weights_are_read(student, teacher, head, frozen_cfg, build):
    cfg = frozen_cfg(student, teacher)
    Path(cfg.MODEL.KD.TEACHER.WEIGHTS).write_bytes(b"no weights")
    cfg.MODEL.KD.HEADS = [head]
    with pytest.raises(ValueError, match=f"^{head} "):
        build(cfg)


def test_a_backbone_that_is_frozen_whole_trains_the_rest(frozen_cfg, build, random_batch, storage):
    """Its features need no gradient, so there is none to take shares of."""
    cfg = frozen_cfg()
    model = build(cfg).train()
    model.student.backbone.requires_grad_(False)
    losses = model(random_batch())
    assert storage.latest()["gradient_share/pkd"][0] == 0
    sum(losses.values()).backward()
    assert model.student.head.cls_score.weight.grad is not None


def test_building_a_teacher_leaves_the_students_config_alone(frozen_cfg, build):
    cfg = frozen_cfg("RetinaNet", "FasterRCNN")
    before = cfg.dump()
    build(cfg)
    assert cfg.dump() == before


def test_unequal_channels_are_refused_with_both_shapes(frozen_cfg, build):
    cfg = frozen_cfg(fpn_channels=64)
    with pytest.raises(ValueError, match=r"p3 \(32 channels, stride 8\).*p3 \(64 channels"):
        build(cfg)
    cfg.MODEL.KD.PKD.ADAPTER = True
    keys = [k for k in build(cfg).state_dict() if not k.startswith("student.")]
    assert keys == ["heads.PKD.adapter.weight", "heads.PKD.adapter.bias"]


def test_rgb_teacher_of_a_bgr_student_sees_flipped_channels(
    frozen_cfg, build, random_batch, teacher_files
):
    cfg = frozen_cfg()
    file = Path(cfg.MODEL.KD.TEACHER.CONFIG_FILE)
    config = yaml.safe_load(file.read_text())
    config["INPUT"]["FORMAT"] = "RGB"
    file.write_text(yaml.safe_dump(config))
    teacher = build(cfg).teacher
    batch = random_batch()
    mean = teacher.detector.pixel_mean
    seen = teacher(batch, None).images.tensor[0, :, :64, :64]
    assert torch.equal(seen, batch[0]["image"].flip(0) - mean)


def test_teacher_inference_is_the_detectors_own(frozen_cfg, build, random_batch):
    cfg = frozen_cfg()
    model = build(cfg).eval()
    batch = random_batch()
    with torch.no_grad():
        own = model.teacher.detector(batch)[0]["instances"]
        ours = model.inference(batch, teacher=True)[0]["instances"]
    assert torch.equal(own.scores, ours.scores)


def test_knowledge_carries_no_gradient(frozen_cfg, build, random_batch):
    teacher = build(frozen_cfg()).teacher
    teacher.request = ViewRequest(Stage.PREDICTIONS)
    view = teacher(random_batch(), None)
    logits, deltas = view.predictions
    assert not any(x.requires_grad for x in [*logits, *deltas, *view.features.values()])
    assert not view.features["p3"].is_inference()


def test_it_computes_in_the_students_precision(frozen_cfg, build, random_batch):
    teacher = build(frozen_cfg()).teacher
    with torch.autocast("cpu", torch.bfloat16):
        view = teacher(random_batch(), None)
    assert {x.dtype for x in view.features.values()} == {torch.bfloat16}


def test_its_detections_are_never_made(frozen_cfg, build, random_batch, storage):
    cfg = frozen_cfg("FCOS", "FCOS")
    cfg.MODEL.KD.HEADS = ["PGD", "SoftLabel"]
    model = build(cfg).train()
    model.teacher.detector.forward_inference = None  # top-k, thresholds and NMS
    assert "loss_soft_label" in model(random_batch())


def test_channels_last_changes_the_memory_and_not_the_losses(
    frozen_cfg, build, random_batch, storage
):
    cfg, batch = frozen_cfg(), random_batch()

    def loss_and_weight(channels_last):
        cfg.MODEL.KD.TEACHER.CHANNELS_LAST = channels_last
        torch.manual_seed(0)
        model = build(cfg).train()
        weight = model.teacher.detector.backbone.fpn_output3.weight
        return model(batch)["loss_pkd"], weight.is_contiguous(memory_format=torch.channels_last)

    (usual, is_last), (moved, moved_is_last) = loss_and_weight(False), loss_and_weight(True)
    assert (is_last, moved_is_last) == (False, True)
    torch.testing.assert_close(moved, usual)


def test_compile_is_for_the_teachers_backbone(frozen_cfg, build, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    cfg = frozen_cfg()
    build(cfg)
    assert not compiled
    cfg.MODEL.KD.TEACHER.COMPILE = True
    model = build(cfg)
    assert compiled == [model.teacher.detector.backbone]


def test_decoded_logits_are_in_the_students_order_of_classes(
    frozen_cfg, build, random_batch, storage
):
    teacher = build(frozen_cfg("FCOS", "FCOS")).teacher
    teacher.request = ViewRequest(Stage.PREDICTIONS, decoded=True)
    own = teacher(random_batch(), None).decoded
    teacher.stages.classes = [2, 0]
    ours = teacher(random_batch(), None).decoded
    assert torch.equal(ours.logits, own.logits[..., [2, 0]])
    assert torch.equal(ours.boxes, own.boxes)
