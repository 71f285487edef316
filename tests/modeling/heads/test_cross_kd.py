"""CrossKD against a forward pass written out, and what it refuses."""

import copy
import math

import pytest
import torch
from head_cases import shapes
from prediction_cases import detector, distiller, step, views
from tiny_models import DENSE, random_batch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from kd_d2 import get_kd_cfg
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.modeling import FrozenTeacher
from kd_d2.modeling.distill_heads import build_distill_head
from kd_d2.modeling.heads import HEAD_VALUES, CrossKD
from kd_d2.modeling.heads.cross_kd import align_channels, box_loss, distribution_loss

every_arch = pytest.mark.parametrize("arch", DENSE)
TAPS = ("cls_tower.0.before_relu", "box_tower.0.before_relu")


# the pure functions


def test_aligned_channels_have_the_others_mean_and_deviation():
    x, like = 5 * torch.randn(2, 3, 4, 5) + 1, torch.randn(2, 3, 4, 5) * 3 - 7
    out = align_channels(x, like)
    for c in range(3):
        assert out[:, c].mean().item() == pytest.approx(like[:, c].mean().item(), rel=1e-4)
        wanted = like[:, c].std(correction=0).item()
        assert out[:, c].std(correction=0).item() == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(align_channels(like, like), like, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(align_channels(9 * x - 2, like), out, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_becomes_the_others_mean_with_finite_gradients():
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    out = align_channels(x, torch.tensor([1.0, 3.0, 1.0, 3.0]).view(1, 1, 2, 2))
    out.square().sum().backward()
    assert out.flatten().tolist() == [2.0] * 4 and x.grad.isfinite().all()


def test_distribution_loss_by_hand():
    teacher = torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 2.0], [5.0, 5.0]]).log()
    one = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    loss = distribution_loss(torch.zeros(4, 2), teacher)
    assert loss.item() == pytest.approx(one / 2, rel=1e-5)
    torch.testing.assert_close(distribution_loss(teacher + 3, teacher), torch.tensor(0.0))


def test_box_loss_is_one_minus_giou_whatever_the_points():
    corners = torch.rand(2, 3, 5, 2, 2) * 64
    x, y = torch.cat([corners.amin(3), corners.amax(3)], -1)
    expected = 1 - torch.stack([generalized_box_iou(a, b).diag() for a, b in zip(x, y)])
    for points in (torch.zeros(5, 2), torch.rand(5, 2) * 64):
        torch.testing.assert_close(box_loss(x, y, points), expected, rtol=1e-4, atol=1e-5)
    assert not box_loss(x, x, torch.zeros(5, 2)).any()


# the head


def slow_losses(student, teacher, labels, align):
    """Of FCOS with one block, level by level, through the teacher's own modules.

    Args:
        student, teacher: views.
        labels: (N, A) of the student.
    """
    head = teacher.stages.detector.head
    logits, boxes, target_logits, target_boxes = [], [], [], []
    for i, stride in enumerate((8, 16, 32, 64, 128)):
        cls, box = (
            F.relu(align(student.taps[tap][i], teacher.taps[tap][i]) if align else x)
            for tap, x in ((tap, student.taps[tap][i]) for tap in TAPS)
        )
        distances = F.relu(head.scales[i](head.bbox_pred(box))) * stride
        own = teacher.predictions[1][i]
        h, w = cls.shape[2:]
        for y in range(h):
            for x in range(w):
                centre = torch.tensor([x + 0.5, y + 0.5]) * stride
                for d, side in ((distances, boxes), (own, target_boxes)):
                    d = d[:, :, y, x]
                    side.append(torch.cat([centre - d[:, :2], centre + d[:, 2:]], 1))
                logits.append(head.cls_score(cls)[:, :, y, x])
                target_logits.append(teacher.predictions[0][i][:, :, y, x])
    logits, boxes, target_logits, target_boxes = (
        torch.stack(x, 1) for x in (logits, boxes, target_logits, target_boxes)
    )
    p, q = logits.sigmoid(), target_logits.sigmoid()
    entropy = -(q * p.log() + (1 - q) * (1 - p).log())
    classes = ((q - p).abs() * entropy).sum() / ((labels >= 0) & (labels < 3)).sum().clamp(min=1)
    certainty = q.amax(-1)
    giou = torch.stack(
        [generalized_box_iou(a, b).diag() for a, b in zip(boxes, target_boxes, strict=True)]
    )
    return classes, (certainty * (1 - giou)).sum() / certainty.sum()


@pytest.mark.parametrize("align", [True, False])
def test_equals_a_forward_pass_written_out(align):
    kwargs = {"blocks": 1, "cls_weight": 2.0, "box_weight": 3.0, "align": align}
    model = distiller(detector("FCOS"), detector("FCOS", seed=1), CrossKD, **kwargs)
    (student, teacher), gt = views(model, random_batch())
    losses = model.heads["CrossKD"](student, teacher, gt)
    labels = torch.stack(student.assignment[0])
    expected = slow_losses(student, teacher, labels, align_channels if align else None)
    for factor, name, value in zip((2, 3), ("cls", "box"), expected, strict=True):
        torch.testing.assert_close(
            losses[f"loss_cross_kd_{name}"], factor * value, rtol=1e-4, atol=0
        )


def test_distributions_are_compared_by_their_divergence():
    model = distiller(detector("GFL"), detector("GFL", seed=1), CrossKD, blocks=1)
    (student, teacher), gt = views(model, random_batch())
    head, stages = model.heads["CrossKD"], teacher.stages
    crossed = stages.predict_from(teacher.features, head.towers(student, teacher))
    total = weight = 0.0
    decoded = stages.decode(teacher.images, teacher.features, teacher.predictions)
    for i, valid in enumerate(decoded.split_levels(decoded.valid)):
        (own, aim), logits = (
            (x[1][i] for x in (crossed, teacher.predictions)),
            teacher.predictions[0][i],
        )
        n, _, h, w = own.shape
        q, p = (x.view(n, 4, 17, h, w).softmax(2) for x in (own, aim))
        divergence = (p * (p / q).log()).sum(2).mean(1)  # (N, H, W)
        certainty = logits.sigmoid().amax(1) * valid.view(n, h, w)
        total, weight = total + (certainty * divergence).sum(), weight + certainty.sum()
    loss = head(student, teacher, gt)["loss_cross_kd_box"]
    torch.testing.assert_close(loss, total / weight, rtol=1e-4, atol=0)


@every_arch
def test_learns_nothing_from_an_equal(arch):
    one = detector(arch)
    model = distiller(copy.deepcopy(one), one, CrossKD, blocks=1)
    for model.heads["CrossKD"].align in (True, False):
        losses = step(model, random_batch())
        assert losses.keys() == {"loss_cross_kd_cls", "loss_cross_kd_box"}
        assert all(abs(loss) < 1e-4 for loss in losses.values())
    for p in model.student.head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert all(loss > 1e-3 for loss in step(model, random_batch()).values())


def test_gradients_pass_the_teacher_and_reach_the_students_blocks_alone():
    student, teacher = detector("FCOS", 3), detector("FCOS", 3, seed=1)
    model = distiller(student, teacher, CrossKD, blocks=2)
    before = copy.deepcopy(teacher.state_dict())
    step(model, random_batch())
    head = student.head
    for tower in (head.cls_subnet, head.bbox_subnet):
        assert tower[0].weight.grad.any() and tower[3].weight.grad.any()  # blocks 0 and 1
        assert tower[6].weight.grad is None
    assert head.cls_score.weight.grad is None and head.bbox_pred.weight.grad is None
    assert student.backbone.fpn_output3.weight.grad.any()
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert not any(m.training for m in teacher.modules())


PAIRS = [("RetinaNet", "FCOS"), ("AutoAssign", "GFL"), ("DDOD", "RetinaNet"), ("GFL", "AutoAssign")]


@pytest.mark.parametrize("student, teacher", PAIRS)
def test_steps_of_unlike_detectors_and_images_without_objects(student, teacher):
    """Anchors, outputs and assignments may differ: all that is compared is the teacher's."""
    model = distiller(detector(student), detector(teacher, seed=1), CrossKD, blocks=1)
    for count in ((2, 0), (0, 0)):
        losses = step(model, random_batch(objects=count))
        assert losses.keys() == {"loss_cross_kd_cls", "loss_cross_kd_box"}
        assert all(loss > 0 for loss in losses.values())


def test_duplicating_the_batch_leaves_the_losses_unchanged():
    model = distiller(detector("ATSS"), detector("ATSS", seed=1), CrossKD, blocks=1)
    batch = random_batch()
    once, twice = step(model, batch), step(model, batch + batch)
    for name, loss in once.items():
        torch.testing.assert_close(twice[name], loss, rtol=1e-4, atol=0)


def test_all_classes_of_the_teacher_are_compared():
    """Also those that the student does not know, and in the teacher's order."""
    student, teacher = detector("FCOS"), detector("FCOS", seed=1)
    model = distiller(student, teacher, CrossKD, blocks=1)
    batch = random_batch()
    expected = step(model, batch)
    model.teacher.stages.classes = [2, 0]
    losses = step(model, batch)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


@pytest.mark.parametrize("arch", ["FCOS", "GFL"])
def test_mixed_precision(arch):
    model = distiller(detector(arch), detector(arch, seed=1), CrossKD, blocks=1)
    expected = step(model, random_batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses = step(model, random_batch())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.1)


def test_large_features_in_float16_are_aligned_in_float32():
    x, like = (300 * torch.randn(2, 3, 4, 5)).half(), torch.randn(2, 3, 4, 5).half()
    expected = align_channels(x.float(), like.float())
    assert expected.isfinite().all() and torch.equal(align_channels(x, like), expected)


# what is refused


def test_unequal_channels_are_refused_with_both_shapes():
    match = r"CrossKD .*stride and channels: .*p0 \(4 channels, stride 8\).*p0 \(6 channels"
    with pytest.raises(ValueError, match=match):
        CrossKD(student_shapes=shapes(4), teacher_shapes=shapes(6))


def test_a_block_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"has 1 blocks, and block 2 .*NUM_CONVS, or let the head"):
        distiller(detector("FCOS"), detector("FCOS"), CrossKD)


@pytest.mark.parametrize("student, teacher", [("FasterRCNN", "FasterRCNN")])
def test_two_stage_detectors_are_refused(student, teacher, frozen_cfg, build):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = ["CrossKD"]
    with pytest.raises(ValueError, match="GeneralizedRCNN has none; take a dense detector"):
        build(cfg)


def test_a_teacher_without_a_head_is_refused(lgd_cfg, build):
    cfg = lgd_cfg()
    cfg.MODEL.KD.HEADS = ["InstructiveFeatures", "CrossKD"]
    with pytest.raises(ValueError, match="CrossKD .* predicts nothing by itself: set MODEL.KD.TEA"):
        build(cfg)


def test_unequal_padding_is_refused_with_both_sizes():
    model = distiller(detector("FCOS"), detector("FCOS"), CrossKD, blocks=1)
    (student, teacher), gt = views(model, random_batch())
    student.taps = {tap: [F.pad(x, (0, 1)) for x in v] for tap, v in student.taps.items()}
    with pytest.raises(ValueError, match=r"student's are \[\(8, 13\), .*teacher's \[\(8, 12\), "):
        model.heads["CrossKD"](student, teacher, gt)


def test_is_built_from_its_keys(frozen_cfg, build):
    cfg = get_kd_cfg()
    by_default = build_distill_head("CrossKD", cfg, shapes(), shapes())
    plain = CrossKD(student_shapes=shapes(), teacher_shapes=shapes())
    for name in ("taps", "cls_weight", "box_weight", "beta", "align"):
        assert getattr(by_default, name) == getattr(plain, name)
    assert plain.taps == ("cls_tower.2.before_relu", "box_tower.2.before_relu")
    assert not list(plain.parameters())
    cfg.MODEL.KD.CROSSKD.BLOCKS = 0
    with pytest.raises(ConfigError, match="^MODEL.KD.CROSSKD.BLOCKS is 0; it must be"):
        check_values(cfg, HEAD_VALUES)

    cfg = frozen_cfg("FCOS", "FCOS")
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.CROSSKD.BLOCKS = ["CrossKD", "PKD"], 1
    cfg.MODEL.KD.CROSSKD.BOX_WEIGHT = 4.0
    model = build(cfg)
    assert isinstance(model.teacher, FrozenTeacher) and model.heads["CrossKD"].box_weight == 4.0
    assert not any(key.startswith("heads") for key in model.state_dict())
