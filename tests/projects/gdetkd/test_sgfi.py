"""SGFI: worked numbers with their gradients, the head, its memory, its log."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from region_cases import batch_for, both_views, distiller
from tiny_models import build
from torchvision.ops import roi_align

from kd_d2.engine import build_optimizer
from kd_d2.modeling.regions import Regions
from kd_d2.projects.gdetkd.level_keys import LevelKeys, channel_adapter, merged
from kd_d2.projects.gdetkd.matching import (
    aggregate_levels,
    entropy,
    imitation_error,
    level_weights,
)
from kd_d2.projects.gdetkd.sgfi import SGFI


def one_region(tau=1.0, detached=False):
    """The worked example: two levels, two channels, one cell."""
    levels = torch.tensor([[[1.0, 0], [0, 2]]], requires_grad=True)
    target = torch.tensor([[0.0, 1]])
    tau = torch.tensor(tau, requires_grad=True)
    weights = level_weights(levels, target, tau)
    used = weights.detach() if detached else weights
    error = imitation_error(
        aggregate_levels(levels[..., None, None], used), target[..., None, None]
    )
    error.mean().backward()
    return weights, error, levels.grad[0], tau.grad


@pytest.mark.parametrize("tau,weight,loss", [(1.0, 0.119203, 0.297117), (0.5, 0.017986, 0.464836)])
def test_worked_numbers(tau, weight, loss):
    weights, error, *_ = one_region(tau)
    assert weights[0].tolist() == pytest.approx([weight, 1 - weight], abs=1e-6)
    assert error.item() == pytest.approx(loss, abs=1e-6)


def test_gradients_pass_through_the_weights_too():
    *_, levels, tau = one_region()
    assert levels.flatten().tolist() == pytest.approx(
        [0.014209, -0.056625, 0.104994, 0.818219], abs=1e-6
    )
    assert tau.item() == pytest.approx(-0.294819, abs=1e-6)
    *_, levels, tau = one_region(detached=True)
    assert levels.flatten().tolist() == pytest.approx(
        [0.014209, 0.090784, 0.104994, 0.670810], abs=1e-6
    )
    assert tau is None


def test_the_softmax_is_over_levels():
    weights = level_weights(torch.randn(7, 5, 64), torch.randn(7, 64), 1.0)
    assert weights.shape == (7, 5) and torch.allclose(weights.sum(1), torch.ones(7))
    assert not torch.allclose(weights.sum(0), torch.ones(5), atol=0.1)


def test_half_precision_does_not_overflow():
    """A dot product of 64 products of 100 and 100 is beyond float16."""
    keys = torch.full((1, 2, 64), 100.0, dtype=torch.float16)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            weights = level_weights(keys, keys[:, 0], 1.0)
        assert weights.dtype == torch.float32 and weights.tolist() == [[0.5, 0.5]]
    assert entropy(weights).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    """Dot products of keys that are not normalised need all digits."""
    sgfi = head(temperature=0.5)
    features, regions, target = inputs()
    with torch.no_grad():
        for p in sgfi.keys.parameters():
            p.mul_(6)
    errors, weights = sgfi.compare(View(features), regions, target)
    with torch.autocast("cpu", dtype=dtype):
        low, low_weights = sgfi.compare(View(features), regions, target)
    assert torch.equal(low, errors) and torch.equal(low_weights, weights)
    assert errors.isfinite().all()


def test_the_sizes_of_the_embedding():
    keys, adapter = LevelKeys(256, (128, 64)), channel_adapter(256, 256)
    assert sum(p.numel() for p in keys.parameters()) == 368832 and keys(
        torch.zeros(2, 256, 7, 7)
    ).shape == (2, 64)
    assert sum(p.numel() for p in adapter.parameters()) == 65792
    x = torch.randn(2, 256, 3, 3)
    assert torch.allclose(adapter(x), x)


@pytest.mark.parametrize("final_relu", [True, False])
def test_a_merged_adapter_is_exact(final_relu):
    adapter, keys = channel_adapter(12, 16), LevelKeys(16, (8, 4), final_relu)
    x = torch.randn(3, 12, 7, 7)
    assert torch.allclose(keys(x, adapter), keys(adapter(x)), atol=1e-5)
    weight, bias = merged(adapter, keys.conv1)
    assert weight.shape == (8, 12, 3, 3) and bias.shape == (8,)
    assert (keys(torch.randn(99, 16, 7, 7)) < 0).any() != final_relu


def head(memory_budget=1024, **kwargs):
    """A head for a student with two levels of 6 channels and a teacher with 8."""
    shapes = {"p3": ShapeSpec(channels=6, stride=8), "p4": ShapeSpec(channels=6, stride=16)}
    sgfi = SGFI(student_shapes=shapes, embed_channels=(8, 4), memory_budget=memory_budget, **kwargs)
    sgfi.sampling_ratio = 2
    sgfi.adapter = channel_adapter(6, 8)
    if sgfi.soft:
        sgfi.keys = LevelKeys(8, (8, 4))
    return sgfi


def inputs(count=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = {
        f"p{i}": torch.randn(2, 6, 64 >> i, 64 >> i, generator=generator).requires_grad_()
        for i in (3, 4)
    }
    corners = torch.rand(count, 2, generator=generator) * 30
    boxes = torch.cat((corners, corners + 8 + 20 * torch.rand(count, 2, generator=generator)), 1)
    counts = [count // 3, count - count // 3]
    regions = Regions(boxes, counts, torch.ones(count, dtype=torch.bool))
    return features, regions, torch.randn(count, 8, 7, 7, generator=generator)


class View:
    def __init__(self, features):
        self.features = features


def slowly(sgfi, features, regions, target):
    """Region by region and level by level, as the formulas are written."""
    errors = []
    for roi, aim in zip(regions.rois(), target, strict=True):
        adapted, similarity = [], []
        for feature, stride in zip(features.values(), (8, 16), strict=True):
            pooled = roi_align(feature, roi[None], 7, 1 / stride, 2, aligned=True)
            adapted.append(sgfi.adapter(pooled)[0])
            similarity.append((sgfi.keys(adapted[-1][None])[0] * sgfi.keys(aim[None])[0]).sum())
        alpha = (torch.stack(similarity) / sgfi.log_temperature.exp()).softmax(0)
        total = sum(a * x for a, x in zip(alpha, adapted, strict=True))
        errors.append((total - aim).square().mean())
    return torch.stack(errors)


@pytest.mark.parametrize("chunk", [100, 4, 1])
def test_all_regions_at_once_or_in_chunks_are_one_after_the_other(chunk):
    sgfi = head(chunk * 4 * 2 * 6 * 49 / 2**20, temperature=2.0)
    features, regions, target = inputs()

    def gradients(errors):
        leaves = [*features.values(), *sgfi.parameters()]
        return torch.autograd.grad(errors.mean(), leaves)

    errors, weights = sgfi.compare(View(features), regions, target)
    expected = slowly(sgfi, features, regions, target)
    assert weights.shape == (9, 2) and torch.allclose(errors, expected, atol=1e-5)
    for own, other in zip(gradients(errors), gradients(expected), strict=True):
        assert own.any() and torch.allclose(own, other, rtol=1e-3, atol=1e-6)


def test_the_temperature_keeps_within_its_limits_and_has_a_gradient_there():
    sgfi = head(temperature=1.0, temperature_limits=(0.5, 2.0))
    features, regions, target = inputs()
    for value, limit in ((-5.0, 0.5), (5.0, 2.0)):
        with torch.no_grad():
            sgfi.log_temperature.fill_(value)
        sgfi.limit_temperature()
        errors, _ = sgfi.compare(View(features), regions, target)
        (gradient,) = torch.autograd.grad(errors.sum(), sgfi.log_temperature)
        assert sgfi.log_temperature.exp().item() == pytest.approx(limit) and gradient != 0


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_temperature_does_not_decay(optimizer, frozen_cfg):
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ["SGFI"])
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.SOLVER.OPTIMIZER = optimizer
    for group in build_optimizer(cfg, model).param_groups:
        has = any(p is model.heads["SGFI"].log_temperature for p in group["params"])
        assert not has or (group["weight_decay"] == 0 and len(group["params"]) == 1)


def test_its_layers_may_learn_more_slowly(frozen_cfg):
    cfg = frozen_cfg("RetinaNet", "FasterRCNN")
    cfg.MODEL.KD.HEADS = ["SGFI", "CKD"]
    cfg.MODEL.KD.SGFI.LR_FACTOR = 0.1
    cfg.SOLVER.BASE_LR = 0.5
    model = build(cfg)
    own = set(model.heads["SGFI"].parameters())
    for group in build_optimizer(cfg, model).param_groups:
        rates = {0.05 if p in own else 0.5 for p in group["params"]}
        assert rates == {group["lr"]}


@pytest.mark.parametrize(
    "student,teacher",
    [
        ("FasterRCNN", "FasterRCNN"),
        ("RetinaNet", "MaskRCNN"),
        ("FCOS", "FCOS"),
        ("CascadeRCNN", "ATSS"),
    ],
)
@pytest.mark.parametrize("matching", ["soft", "assigned"])
def test_pairs(student, teacher, matching, frozen_cfg, storage):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = ["SGFI"]
    cfg.MODEL.KD.SGFI.MATCHING = matching
    model = build(cfg).train()
    loss = model(batch_for(student))["loss_sgfi"]
    loss.backward()
    assert loss > 0 and model.student.backbone.fpn_lateral5.weight.grad.any()
    assert all(p.grad is not None for p in model.heads.parameters())
    assert all(p.grad is None for p in model.teacher.detector.parameters())


@pytest.mark.parametrize("student", ["FasterRCNN", "FCOS"])
def test_a_student_that_is_its_teacher_has_no_loss_at_the_assigned_level(
    student, frozen_cfg, storage
):
    cfg = frozen_cfg(student, student)
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.SGFI.MATCHING = ["SGFI"], "assigned"
    cfg.MODEL.KD.REGIONS.POOLER_SAMPLING_RATIO = 0  # as the R-CNN's own pooler
    model = build(cfg).train()
    model.student.load_state_dict(model.teacher.detector.state_dict())
    assert model(batch_for(student))["loss_sgfi"].item() == pytest.approx(0, abs=1e-9)


def test_hard_weights_at_the_assigned_level_find_the_teacher(frozen_cfg):
    """Teacher and student being one, a one at the assigned level leaves nothing to learn."""
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ["SGFI"], POOLER_SAMPLING_RATIO=0)
    model.student.load_state_dict(model.teacher.detector.state_dict())
    student, teacher = both_views(model, batch_for("FasterRCNN"))
    sgfi, regions = model.heads["SGFI"], student.regions.regions
    levels = sgfi.pool([student.features[f] for f in sgfi.strides], regions, 7)
    hard = torch.tensor(list(sgfi.strides.values())) == teacher.regions.strides[:, None]
    assert (hard.sum(1) == 1).all()
    own = sgfi.adapter(aggregate_levels(levels, hard.float()))
    assert imitation_error(own, teacher.regions.pooled).max() < 1e-9


@pytest.mark.parametrize("matching", ["soft", "assigned"])
def test_no_region_is_a_loss_of_0_with_gradients(matching):
    sgfi = head(matching=matching)
    view = View(inputs()[0])
    empty = Regions.of_images([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.bool)])
    view.regions = type("Seen", (), {"regions": empty, "pooled": torch.zeros(0, 8, 7, 7)})
    loss = sgfi(view, view, [])["loss_sgfi"]
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in sgfi.parameters())


def test_the_log(frozen_cfg, storage):
    model = distiller(frozen_cfg, "RetinaNet", "FasterRCNN", ["SGFI"])
    model(batch_for("RetinaNet"))
    logged = {k: v for k, (v, _) in storage.latest().items() if k.startswith("sgfi/")}
    weights = [logged.pop(f"sgfi/weight_p{i}") for i in range(3, 8)]
    assert sum(weights) == pytest.approx(1) and logged.pop("sgfi/temperature") == 1
    assert 0 <= logged.pop("sgfi/entropy") <= math.log(5)
    assert 0 <= logged.pop("sgfi/cross_level_share") <= 1 and not logged


def test_a_cap_on_the_regions(frozen_cfg, storage):
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.SGFI.MAX_REGIONS = ["SGFI"], 5
    model = build(cfg).train()
    seen, compare = [], model.heads["SGFI"].compare
    model.heads["SGFI"].compare = lambda s, regions, target: (
        seen.append(regions) or compare(s, regions, target)
    )
    model(batch_for("FasterRCNN"))
    assert len(seen[0]) == 5


def test_boxes_are_not_rounded_in_half_precision():
    """In float16 a box at 1001.3 would be one at 1001.5."""
    sgfi = head()
    feature = torch.linspace(0, 1, 128)[None, None, None].expand(1, 6, 64, 128)
    box = torch.tensor([[1001.3, 8, 1013.3, 20]])
    regions = Regions(box, [1], torch.ones(1, dtype=torch.bool))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = sgfi.pool((feature.bfloat16(), feature[..., ::2].bfloat16()), regions, 7)
    full = sgfi.pool((feature.bfloat16().float(), feature[..., ::2].bfloat16().float()), regions, 7)
    assert low.dtype == torch.float32 and torch.equal(low, full)


def test_pooled_features_that_are_too_small(frozen_cfg):
    cfg = frozen_cfg("FasterRCNN", "RetinaNet")
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.REGIONS.POOLER_RESOLUTION = ["SGFI"], 5
    with pytest.raises(ValueError, match="at least 7 x 7 cells, and the teacher's have 5 x 5"):
        build(cfg)
    cfg.MODEL.KD.SGFI.MATCHING = "assigned"  # embeds nothing
    assert build(cfg).heads["SGFI"].pooler.output_size == (5, 5)
