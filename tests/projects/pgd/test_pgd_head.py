"""PGD's head on whole models: what it reads, what it trains, what it refuses."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.detectors.fcos_targets import pad_objects
from kd_d2.projects.pgd import PGD, cls_loss, prediction_guided_maps, reg_loss
from kd_d2.projects.pgd.head import with_mixed_strides

DETECTORS = ["FCOS", "ATSS", "GFL", "AutoAssign", "DDOD"]
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
LOSSES = {f"loss_pgd_{tower}_{level}" for tower in ("cls", "reg") for level in LEVELS}


@pytest.fixture
def pgd_cfg(frozen_cfg):
    def make(student="FCOS", teacher=None, **settings):
        cfg = frozen_cfg(student, teacher or student)
        cfg.MODEL.KD.HEADS = ["PGD"]
        for key, value in settings.items():
            cfg.MODEL.KD.PGD[key] = value
        return cfg

    return make


@pytest.mark.parametrize("arch", DETECTORS)
def test_a_step_trains_the_student_and_nothing_else(arch, pgd_cfg, build, random_batch, storage):
    model = build(pgd_cfg(arch)).train()
    losses = model(random_batch())
    assert set(losses) >= LOSSES
    assert all(torch.isfinite(x) and x.dtype == torch.float32 for x in losses.values())
    sum(losses[name] for name in LOSSES).backward()
    head = model.student.head
    assert head.cls_subnet[0].weight.grad.abs().sum() > 0
    assert head.bbox_subnet[0].weight.grad.abs().sum() > 0
    assert head.cls_score.weight.grad is None  # taps end before the predictors
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert not list(model.heads.parameters())


@pytest.mark.parametrize("objects", [(0, 1), (0, 0)])
@pytest.mark.parametrize("arch", DETECTORS)
def test_images_without_objects(arch, objects, pgd_cfg, build, random_batch, storage):
    model = build(pgd_cfg(arch)).train()
    losses = model(random_batch(objects=objects))
    assert set(losses) >= LOSSES
    sum(losses.values()).backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)
    if not any(objects):
        assert all(losses[f"loss_pgd_reg_{level}"] == 0 for level in LEVELS)
        assert all(losses[f"loss_pgd_cls_{level}"] > 0 for level in LEVELS)  # background


@pytest.mark.parametrize("arch", ["FCOS", "ATSS"])
def test_the_losses_are_those_of_the_parts(arch, pgd_cfg, build, random_batch, storage):
    model = build(pgd_cfg(arch, JITTER=False, TOPK=4, MODE="reference")).train()
    seen = {}
    model.heads["PGD"].register_forward_hook(
        lambda module, args, output: seen.update(args=args, losses=output)
    )
    model(random_batch())
    student, teacher, gt = seen["args"]
    boxes, classes = pad_objects(gt)
    maps = prediction_guided_maps(
        teacher.decoded,
        boxes,
        classes,
        k=4,
        cls_exponent=0.8,
        reg_exponent=0.6,
        jitter=False,
        transposed=arch == "FCOS",
    )
    start = 0
    for i, (h, w) in enumerate(teacher.decoded.sizes):
        cells = slice(start, start := start + h * w)
        fore, reg, back = (
            m[:, cells].view(-1, h, w) for m in (maps.cls, maps.reg, maps.background)
        )
        common = {"delta": 0.0008, "temperature": 0.8}
        expected = cls_loss(
            student.taps["cls_tower.0"][i],
            teacher.taps["cls_tower.0"][i],
            fore,
            back,
            alpha=0.08,
            beta=0.04,
            level_weight=1 + i / 4,
            share_masks=True,
            **common,
        )
        torch.testing.assert_close(seen["losses"][f"loss_pgd_cls_{LEVELS[i]}"], expected)
        towers = student.taps["box_tower.0"][i], teacher.taps["box_tower.0"][i]
        expected = reg_loss(*towers, reg, gamma=0.128, **common)
        torch.testing.assert_close(seen["losses"][f"loss_pgd_reg_{LEVELS[i]}"], expected)


def test_taps_are_the_first_blocks_after_their_activation(pgd_cfg, build, random_batch, storage):
    model = build(pgd_cfg("ATSS")).train()
    seen = {}
    model.heads["PGD"].register_forward_hook(lambda module, args, output: seen.update(args=args))
    model(random_batch())
    student = seen["args"][0]
    expected = [model.student.head.cls_subnet[:3](x) for x in student.features.values()]
    for ours, theirs in zip(student.taps["cls_tower.0"], expected, strict=True):
        assert (ours >= 0).all()
        torch.testing.assert_close(ours, theirs)


def test_modes_differ_where_the_release_errs(pgd_cfg, build, random_batch, storage):
    def loss(arch, mode):
        torch.manual_seed(0)
        model = build(pgd_cfg(arch, MODE=mode, JITTER=False)).train()
        losses = model(random_batch())
        return torch.stack([losses[name] for name in sorted(LOSSES)])

    assert not torch.equal(loss("FCOS", "reference"), loss("FCOS", "corrected"))
    reference, corrected = loss("ATSS", "reference"), loss("ATSS", "corrected")
    assert (reference[:5] >= corrected[:5]).all() and (reference[:5] > corrected[:5]).any()
    assert torch.equal(reference[5:], corrected[5:])  # the box tower's loss has no shared masks


@pytest.mark.parametrize(
    ("arch", "fault", "changes"),
    [
        ("FCOS", "swapped_axes", True),
        ("ATSS", "swapped_axes", False),
        ("FCOS", "shared_masks", True),
        ("GFL", "mixed_strides", True),
        ("FCOS", "mixed_strides", False),
    ],
)
def test_each_fault_can_be_had_alone(arch, fault, changes, pgd_cfg, build, random_batch, storage):
    def loss(faults):
        torch.manual_seed(0)
        settings = {"MODE": "reference", "REFERENCE_FAULTS": faults, "JITTER": False, "TOPK": 9}
        losses = build(pgd_cfg(arch, **settings)).train()(random_batch())
        return torch.stack([losses[name] for name in sorted(LOSSES)])

    assert torch.equal(loss([fault]), loss([])) != changes


def test_gfl_boxes_with_the_strides_of_other_levels():
    # two levels of one location each; distances 1 in units of the stride
    points, strides = torch.tensor([[8.0, 8], [16, 16]]), torch.tensor([8.0, 16])
    reach = strides[:, None]
    boxes = torch.cat((points - reach, points + reach), 1).expand(2, 2, 4)
    valid = torch.ones(2, 2, dtype=torch.bool)
    decoded = DensePredictions(torch.zeros(2, 2, 1), boxes, points, strides, valid, [(1, 1)] * 2)
    mixed = with_mixed_strides(decoded)
    assert mixed[0].tolist() == [[0, 0, 16, 16], [8, 8, 24, 24]]  # all with stride 8
    assert mixed[1].tolist() == [[-8, -8, 24, 24], [0, 0, 32, 32]]  # all with stride 16
    decoded.boxes = boxes[:1].expand(3, 2, 4)
    with pytest.raises(ValueError, match="up to 2 images a process for GFL, and there are 3"):
        with_mixed_strides(decoded)


def shapes(strides=(8, 16, 32, 64, 128), channels=32):
    return {f"p{i + 3}": ShapeSpec(channels=channels, stride=s) for i, s in enumerate(strides)}


@pytest.mark.parametrize(
    "teacher", [shapes(channels=64), shapes(strides=(8, 16, 32)), shapes(strides=(4, 8, 16))]
)
def test_towers_that_cannot_be_compared_are_refused(teacher):
    with pytest.raises(ValueError, match="all levels must agree in stride and channels"):
        PGD(student_shapes=shapes(), teacher_shapes=teacher)


def test_several_anchors_a_cell_are_refused(pgd_cfg, build):
    with pytest.raises(ValueError, match="one location a cell, and the teacher has 6"):
        build(pgd_cfg("FCOS", "RetinaNet"))


def test_a_student_without_towers_is_refused(pgd_cfg, build):
    with pytest.raises(ValueError, match="one location a cell, and a GeneralizedRCNN has no"):
        build(pgd_cfg("FasterRCNN"))
