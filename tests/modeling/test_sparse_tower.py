"""A box tower computed around the positives gives what the dense one gives there."""

import pytest
import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

from kd_d2.modeling import Stage, ViewRequest, build_stages, dense_stages
from kd_d2.modeling.sparse_tower import (
    cells_with_objects,
    is_sparse_tower,
    plan_sparse_tower,
    run_sparse_tower,
)


def tower(num_convs=3, channels=4):
    layers = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def maps(*sizes, images=2, channels=4):
    return [torch.randn(images, channels, h, w, requires_grad=True) for h, w in sizes]


SIZES = [(14, 17), (7, 9), (2, 3), (1, 1)]


def some_cells(*chosen):
    """Bool maps of SIZES, two images, with the (level, image, y, x) chosen."""
    needed = [torch.zeros(2, h, w, dtype=torch.bool) for h, w in SIZES]
    for level, image, y, x in chosen:
        needed[level][image, y, x] = True
    return needed


@pytest.mark.parametrize("num_convs", [1, 2, 4])
@pytest.mark.parametrize(
    "chosen",
    [
        [(0, 0, 0, 0), (0, 0, 13, 16)],  # corners: the padding of each layer counts
        [(0, 1, 6, 8), (1, 0, 0, 8), (1, 1, 6, 0)],
        [(3, 0, 0, 0), (2, 1, 1, 2)],  # levels of a few cells
        [],
    ],
)
def test_equals_the_dense_tower_where_it_is_needed(num_convs, chosen):
    torch.manual_seed(0)
    net, features, needed = tower(num_convs), maps(*SIZES), some_cells(*chosen)
    outputs = run_sparse_tower(net, features, plan_sparse_tower(num_convs, needed))
    weights = [torch.randn_like(x) * n[:, None] for x, n in zip(features, needed, strict=True)]

    def gradients(outputs):
        total = sum((w * y).sum() for w, y in zip(weights, outputs, strict=True))
        return torch.autograd.grad(total, [*features, *net.parameters()])

    dense = [net(x) for x in features]
    for y, expected, n in zip(outputs, dense, needed, strict=True):
        expected = expected * n[:, None]
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    for g, expected in zip(gradients(outputs), gradients(dense), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-4, atol=1e-5)


def test_a_single_cell_costs_its_receptive_field_only():
    net, features = tower(2), maps((40, 40), images=1)
    needed = [torch.zeros(1, 40, 40, dtype=torch.bool)]
    needed[0][0, 20, 20] = True
    with torch.no_grad():
        features[0][:, :, :18] = features[0][:, :, 23:] = float("nan")
    # two 3x3 layers reach two cells far: rows 18 to 22
    plan = plan_sparse_tower(2, needed)
    assert run_sparse_tower(net, features, plan)[0].isfinite().all()
    assert [len(plan.first), len(plan.last)] == [25, 1]


def test_left_to_the_dense_tower_where_most_cells_are_needed():
    needed = [torch.ones(2, h, w, dtype=torch.bool) for h, w in SIZES]
    assert plan_sparse_tower(3, needed) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Sigmoid(),
    ],
)
def test_other_towers_are_left_alone(layer):
    assert is_sparse_tower(tower())
    assert not is_sparse_tower(nn.Sequential(*tower(), layer))
    assert not is_sparse_tower(layer)


def test_cells_of_positive_anchors():
    # two anchors a cell; class 2 of 3 in cell (1, 1) of a 3x4 map; -1 is ignored, 3 background
    labels = torch.full((1, 24 + 2), 3)
    labels[0, 2 * (1 * 4 + 1) + 1] = 2
    labels[0, 2 * (2 * 4 + 3)] = -1
    first, second = cells_with_objects(list(labels), 3, [(3, 4), (1, 1)])
    assert first[0].int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert not second.any()


def test_a_distiller_trains_the_same_with_and_without(tiny_cfg, build, random_batch, storage):
    cfg = tiny_cfg()
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    detector = build(cfg).train()
    batch = random_batch()
    gt = [x["instances"] for x in batch]
    stages = build_stages(detector)
    assert stages.skips_unused_cells()

    def run(only_losses):
        detector.zero_grad()
        detector.__dict__.pop("loss_normalizer", None)  # RetinaNet's running mean of positives
        losses = stages.run(batch, ViewRequest(Stage.LOSSES), gt, only_losses).losses
        sum(losses.values()).backward()
        return losses, {n: p.grad for n, p in detector.named_parameters() if p.requires_grad}

    dense, sparse = run(False), run(True)
    assert dense[0].keys() == sparse[0].keys() and sparse[0]["loss_box_reg"] > 0
    for name, loss in dense[0].items():
        torch.testing.assert_close(sparse[0][name], loss, rtol=1e-5, atol=1e-6)
    for name, grad in dense[1].items():
        torch.testing.assert_close(sparse[1][name], grad, rtol=1e-4, atol=1e-6)


def own_losses(detector):
    class OwnLosses(RetinaNet):
        def losses(self, *args):
            return super().losses(*args)

    detector.__class__ = OwnLosses


def own_forward_training(detector):
    class DenseAuxiliaryLoss(RetinaNet):
        def forward_training(self, *args):
            return super().forward_training(*args)

    detector.__class__ = DenseAuxiliaryLoss


def own_head(detector):
    class SecondBranch(RetinaNetHead):
        def forward(self, features):
            return super().forward(features)

    detector.head.__class__ = SecondBranch


def losses_of_the_instance(detector):
    detector.losses = detector.losses


def wide_prediction(detector):
    detector.head.bbox_pred = nn.Conv2d(32, 8, 5, padding=2)


def hooked_layer(detector):
    detector.head.bbox_subnet[0].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("norm, skips", [("", True), ("GN", False), ("BN", False)])
def test_norms_need_all_cells(norm, skips, tiny_cfg, build):
    cfg = tiny_cfg()
    cfg.MODEL.RETINANET.NORM = norm
    assert build_stages(build(cfg)).skips_unused_cells() == skips
    assert not build_stages(build(tiny_cfg("FCOS"))).skips_unused_cells()


@pytest.mark.parametrize(
    "change",
    [
        own_losses,
        own_forward_training,
        own_head,
        losses_of_the_instance,
        wide_prediction,
        hooked_layer,
    ],
)
def test_whoever_may_read_other_cells_gets_them(change, tiny_cfg, build):
    detector = build(tiny_cfg())
    stages = build_stages(detector)
    assert stages.skips_unused_cells()
    change(detector)
    assert not stages.skips_unused_cells()


def test_under_autocast(tiny_cfg):
    torch.manual_seed(0)
    net, features, needed = tower(2), maps(*SIZES), some_cells((0, 0, 5, 5), (1, 1, 3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run_sparse_tower(net, features, plan_sparse_tower(2, needed))
        dense = [net(x) for x in features]
    for y, expected, n in zip(outputs, dense, needed, strict=True):
        assert y.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(y, expected * n[:, None], rtol=0.02, atol=0.01)
    sum(y.float().sum() for y in outputs).backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize(
    "key, value, passes",
    [
        (None, None, 2),  # the student's own, and the teacher's through the student's head
        ("SKIP_UNUSED_CELLS", False, 0),
        ("LGD.PRE_NONDISTILL", "auto", 0),  # a head that asks for more than features
    ],
)
def test_a_distiller_skips_where_nobody_looks(
    key, value, passes, lgd_cfg, build, random_batch, storage, monkeypatch
):
    calls = []
    original = dense_stages.run_sparse_tower
    monkeypatch.setattr(
        dense_stages,
        "run_sparse_tower",
        lambda *args: calls.append(original(*args)) or calls[-1],
    )
    cfg = lgd_cfg()
    if key is not None:
        cfg.merge_from_list([f"MODEL.KD.{key}", value])
    torch.manual_seed(0)
    model = build(cfg).train()
    batch = random_batch(sizes=((160, 192), (128, 192)))
    losses = model(batch)
    assert len(calls) == passes
    model.stages.may_skip_cells = False
    del model.student.loss_normalizer  # RetinaNet's running mean of positives
    for name, loss in model(batch).items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=1e-6)
