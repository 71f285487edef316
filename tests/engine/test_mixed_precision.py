"""Whole distillers in bfloat16 and float16, on a CPU; with a GPU the same is run there, too."""

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from kd_d2.engine import TrainLoop, build_optimizer

ARCHS = ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def lgd(arch, lgd_cfg, build, device="cpu"):
    cfg = lgd_cfg(arch)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.KD.LGD.PRE_NONDISTILL = 0
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = cfg.MODEL.MASK_ON
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.TEACHER.OPTIMIZER = "AdamW"  # so that both kinds step
    torch.manual_seed(0)
    return cfg, build(cfg).to(device).train()


@pytest.mark.parametrize("arch", ARCHS)
def test_losses_are_float32_and_near_those_of_float32(
    arch, device, lgd_cfg, build, random_batch, storage
):
    _, model = lgd(arch, lgd_cfg, build, device)
    batch = random_batch(masks=arch == "MaskRCNN")
    torch.manual_seed(1)  # of the samplers
    full = model(batch)
    model.student.__dict__.pop("loss_normalizer", None)  # RetinaNet's running mean of positives
    torch.manual_seed(1)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = model(batch)
    assert half.keys() == full.keys()
    assert half["loss_distill"].dtype == torch.float32
    torch.testing.assert_close(half["loss_distill"], full["loss_distill"], rtol=0.02, atol=0)
    # two-stage losses depend on which proposals survive, a matter of the last digits
    dense = arch in ("RetinaNet", "FCOS")
    for name in full:
        assert half[name].isfinite()
        if dense:
            assert half[name].item() == pytest.approx(full[name].item(), rel=0.1, abs=0.02), name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_in_half_precision(arch, dtype, device, lgd_cfg, build, random_batch):
    cfg, model = lgd(arch, lgd_cfg, build, device)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    batch = random_batch(masks=arch == "MaskRCNN")
    loop = TrainLoop(model, [batch], build_optimizer(cfg, model), dtype)
    assert (loop.grad_scaler is not None) == (dtype == torch.float16)
    if loop.grad_scaler is not None:
        # random networks overflow at the default of 65536, which is what the next test is about
        loop.grad_scaler.load_state_dict({**loop.grad_scaler.state_dict(), "scale": 8.0})
    with EventStorage():
        loop.iter = 0
        loop.run_step()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.dtype == torch.float32 and p.isfinite().all(), name
    parameters = dict(model.named_parameters())
    for part in ("student", "teacher", "heads"):
        mine = [n for n in before if n.startswith(part)]
        assert any(not torch.equal(parameters[n], before[n]) for n in mine), part


@pytest.mark.parametrize("arch", ["FCOS", "ATSS", "GFL", "AutoAssign", "DDOD"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_with_a_frozen_teacher(arch, dtype, device, frozen_cfg, build, random_batch):
    cfg = frozen_cfg(arch, arch)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.KD.HEADS = ["PGD"]
    cfg.MODEL.KD.ASSIGN_BY = "teacher" if arch == "DDOD" else "student"
    cfg.SOLVER.BASE_LR = 1e-6
    model = build(cfg).to(device).train()
    seen = []
    model.teacher.detector.head.cls_score.register_forward_hook(lambda m, x, y: seen.append(y))
    before = model.student.head.cls_score.weight.detach().clone()
    loop = TrainLoop(model, [random_batch()], build_optimizer(cfg, model), dtype)
    if loop.grad_scaler is not None:
        loop.grad_scaler.load_state_dict({**loop.grad_scaler.state_dict(), "scale": 8.0})
    with EventStorage() as storage:
        loop.iter = 0
        loop.run_step()
        losses = storage.latest()
    assert {y.dtype for y in seen} == {dtype}  # the teacher runs in it, too
    assert sum(name.startswith("loss_pgd") for name in losses) == 10
    assert not torch.equal(model.student.head.cls_score.weight, before)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", ["SoLAD", "CoLAD", "CoLAD with COP"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_with_shared_labels(method, dtype, device, frozen_cfg, build, random_batch):
    cfg = frozen_cfg("PAA", "PAA")
    cfg.MODEL.DEVICE = device
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.ASSIGN_BY = ["FocalSoftLabel"], "teacher"
    if method != "SoLAD":
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.TEACHER.NAME = "CoLearningDistiller", "Peer"
        cfg.MODEL.KD.HEADS, cfg.MODEL.KD.ASSIGN_BY = [], "student"
        cfg.MODEL.PAA.OBJECTNESS = "cop" if "COP" in method else "none"
    cfg.SOLVER.BASE_LR = 1e-6
    model = build(cfg).to(device).train()
    seen = []
    select = model.student.select if method != "SoLAD" else model.teacher.detector.select

    def record(pre, costs):
        seen.append(costs)
        return select(pre, costs)

    owner = model.student if method != "SoLAD" else model.teacher.detector
    owner.__dict__["select"] = record
    loop = TrainLoop(model, [random_batch()], build_optimizer(cfg, model), dtype)
    if loop.grad_scaler is not None:
        loop.grad_scaler.load_state_dict({**loop.grad_scaler.state_dict(), "scale": 8.0})
    with EventStorage() as storage:
        loop.iter = 0
        loop.run_step()
        losses = {k: v for k, (v, _) in storage.latest().items() if k.startswith("loss")}
    assert seen[0].dtype == torch.float32 and seen[0].isfinite().all() and len(seen[0])
    assert len(losses) == 6 and np.isfinite(list(losses.values())).all()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("student", ["FasterRCNN", "RetinaNet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_with_regions(student, dtype, device, frozen_cfg, build, random_batch):
    cfg = frozen_cfg(student, "FasterRCNN")
    cfg.MODEL.DEVICE = device
    cfg.MODEL.KD.HEADS = ["SGFI", "CKD"] + ["RoIClassKD", "RoIBoxKD"] * (student == "FasterRCNN")
    cfg.SOLVER.BASE_LR = 1e-6
    model = build(cfg).to(device).train()
    loop = TrainLoop(model, [random_batch()], build_optimizer(cfg, model), dtype)
    if loop.grad_scaler is not None:
        loop.grad_scaler.load_state_dict({**loop.grad_scaler.state_dict(), "scale": 2.0**-8})
    before = {name: p.detach().clone() for name, p in model.heads.named_parameters()}
    with EventStorage() as storage:
        loop.iter = 0
        loop.run_step()
        losses = {k: v for k, (v, _) in storage.latest().items() if k.startswith("loss")}
    assert {"loss_sgfi", "loss_ckd"} <= losses.keys() and np.isfinite(list(losses.values())).all()
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in model.heads.named_parameters())


def test_an_overflow_skips_both_optimisers_and_halves_the_scale(
    device, lgd_cfg, build, random_batch
):
    cfg, model = lgd("RetinaNet", lgd_cfg, build, device)
    loop = TrainLoop(model, [random_batch()] * 2, build_optimizer(cfg, model), torch.float16)
    state = loop.grad_scaler.state_dict()
    loop.grad_scaler.load_state_dict({**state, "scale": 2.0**60})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with EventStorage():
        loop.iter = 0
        loop.run_step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(part.state for part in loop.optimizer.parts.values())
    assert loop.grad_scaler.get_scale() == 2.0**59
    resumed = TrainLoop(model, [], build_optimizer(cfg, model), torch.float16)
    resumed.load_state_dict(loop.state_dict())
    assert resumed.grad_scaler.get_scale() == 2.0**59


def test_gradients_are_clipped_after_they_were_unscaled(device, lgd_cfg, build, random_batch):
    cfg, model = lgd("RetinaNet", lgd_cfg, build, device)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    loop = TrainLoop(model, [random_batch()], build_optimizer(cfg, model), torch.float16)
    scale = {"scale": 64.0}  # clipping the scaled gradients would leave at most 1e-3 / 64
    loop.grad_scaler.load_state_dict({**loop.grad_scaler.state_dict(), **scale})
    with EventStorage():
        loop.iter = 0
        loop.run_step()
    for part in loop.optimizer.parts.values():
        largest = max(p.grad.abs().max() for g in part.param_groups for p in g["params"])
        assert largest.item() == pytest.approx(1e-3)
