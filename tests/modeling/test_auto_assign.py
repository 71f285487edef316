"""AutoAssign: losses and gradients against loops, batches without objects, normalisers."""

import math

import pytest
import torch
from auto_assign_cases import (
    POINTS,
    SHAPES,
    objects,
    random_objects,
    random_predictions,
    slow_losses,
    tiny_auto_assign,
    training_losses,
)
from detectron2.structures import ImageList
from fcos_cases import BATCH, EMPTY, K, image

from kd_d2.modeling import build_stages
from kd_d2.modeling.dense_stages import DenseStages
from kd_d2.modeling.label_weights import LabelWeights
from kd_d2.modeling.views import Stage, ViewRequest

LOSSES = ["loss_pos", "loss_neg", "loss_center"]
BETWEEN_POINTS = [17.0, 17, 18.5, 19]


def cases():
    generator = torch.Generator().manual_seed(0)
    nobody, big = objects([], []), [2.0, 1, 62, 47]
    overlapping = objects(
        [big, [10, 5, 40, 44], big, [8, 8, 24, 24], [9, 7, 41, 40]], [1, 1, 2, 0, 1]
    )
    small = objects([BETWEEN_POINTS, [20, 20, 29, 30]], [2, 2])
    return {
        "random": [random_objects(generator, 6), nobody, random_objects(generator, 2)],
        "overlapping": [overlapping, random_objects(generator, 1)],
        "no location inside": [small, overlapping, objects([BETWEEN_POINTS], [0])],
        "nobody": [nobody, nobody],
    }


def float64_leaves(predictions):
    return [[x.double().requires_grad_() for x in level] for level in predictions]


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("weigh", [False, True])
def test_losses_and_gradients_equal_loops(case, weigh):
    gt = cases()[case]
    generator = torch.Generator().manual_seed(1)
    model = tiny_auto_assign()
    if weigh:
        model.label_weights = LabelWeights()
        for x in gt:  # boxes count as their objects do, half as much, or not at all
            n = len(x)
            x.gt_weights = torch.tensor([0.5, 1.0, 0.25, 0.0, 0.75, 0.5])[:n]
            x.gt_box_weights = x.gt_weights * torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 1.0])[:n]
    prior = model.head.center_prior
    prior.mean.data = torch.randn(K, 2, generator=generator) * 0.5
    prior.sigma.data = 0.7 + torch.rand(K, 2, generator=generator)
    predictions = random_predictions(generator, len(gt))

    exact = float64_leaves(predictions)
    slow_prior = [x.detach().double().requires_grad_() for x in (prior.mean, prior.sigma)]
    expected = slow_losses(exact, gt, *slow_prior)
    leaves = [[x.requires_grad_() for x in level] for level in predictions]
    losses = training_losses(model, leaves, gt)
    assert list(losses) == list(expected) == LOSSES
    mine = [*sum(leaves, []), prior.mean, prior.sigma]
    theirs = [*sum(exact, []), *slow_prior]
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-5), name
        gradients = (
            torch.autograd.grad(total, inputs, retain_graph=True, materialize_grads=True)
            for total, inputs in ((value, mine), (expected[name], theirs))
        )
        for a, b in zip(*gradients, strict=True):
            scale = max(b.abs().max().item(), 1e-3)
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * scale)


def test_losses_by_hand():
    """One object around the points (32, 32) of all levels, and nothing else inside it.

    All three have a perfect box, class probability 1/2 and objectness 1/2, hence confidence 1/4 and
    equal weights, which are 0 for the object's class as background. The prior is 1 for all.
    """
    gt = [objects([[28, 28, 36, 36]], [1])]
    predictions = tuple([torch.zeros(1, c, *s) for s in SHAPES] for c in (K, 4, 1))
    predictions[1][:] = [torch.full_like(x, 4.0) for x in predictions[1]]
    losses = training_losses(tiny_auto_assign(), predictions, gt)
    assert losses["loss_pos"].item() == pytest.approx(0.25 * math.log(4))
    # (1/4)**2 * -ln(3/4) for 64 points and 3 classes without three pairs; divided by 3
    assert losses["loss_neg"].item() == pytest.approx(
        0.75 * (64 * 3 - 3) * math.log(4 / 3) / 16 / 3
    )
    assert losses["loss_center"].item() == pytest.approx(0.75 / 3)


def test_points_have_no_half_stride_shift():
    model = tiny_auto_assign()
    points, strides = model.locations([torch.zeros(1, 1, *s) for s in SHAPES])
    assert [(*p, s) for p, s in zip(points.tolist(), strides.tolist(), strict=True)] == POINTS


def test_there_is_no_assignment_to_exchange():
    model = tiny_auto_assign()
    stages, gt = build_stages(model), [x["instances"] for x in BATCH]
    assert type(stages) is DenseStages and not hasattr(model, "label_anchors")
    view = stages.run(BATCH, ViewRequest(Stage.LOSSES), gt)
    assert view.assignment is None
    for name, value in model(BATCH).items():
        torch.testing.assert_close(view.losses[name], value)
    with pytest.raises(TypeError, match="cannot take another network's assignment"):
        stages.losses(view.images, view.features, view.predictions, gt, assignment=([], []))


@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]]])
def test_images_without_objects_train(batch):
    model = tiny_auto_assign()
    losses = model(batch)
    sum(losses.values()).backward()
    assert list(losses) == LOSSES
    assert all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is EMPTY:
        assert losses["loss_pos"] == 0 and losses["loss_center"] == 0 and losses["loss_neg"] > 0
        assert not model.head.bbox_pred.weight.grad.any()
        assert not model.head.center_prior.mean.grad.any()


def test_an_object_without_a_location_costs_a_constant():
    model = tiny_auto_assign()
    losses = model([image([BETWEEN_POINTS], [0])])
    assert losses["loss_pos"].item() == pytest.approx(0.25 * 100)
    assert losses["loss_center"] == 0
    (losses["loss_pos"] + losses["loss_center"]).backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_same_graph_with_and_without_objects():
    def reached(batch):
        model = tiny_auto_assign()
        sum(model(batch).values()).backward()
        return [n for n, p in model.named_parameters() if p.grad is not None]

    assert reached([EMPTY]) == reached([BATCH[0]])
    assert len(reached([EMPTY])) == len(list(tiny_auto_assign().named_parameters()))


def test_padding_with_other_images_objects_changes_nothing():
    """An image's objects, padded to the count of a fuller image, and in a batch of its own."""
    model = tiny_auto_assign()
    generator = torch.Generator().manual_seed(3)
    gt = [random_objects(generator, 1), random_objects(generator, 7)]
    predictions = random_predictions(generator, 2)
    both = training_losses(model, predictions, gt)
    alone = []
    for n in (0, 1):
        one = [[x[n : n + 1] for x in level] for level in predictions]
        alone.append(training_losses(model, one, gt[n : n + 1]))
    positives = (alone[0]["loss_pos"] + 7 * alone[1]["loss_pos"]) / 8
    torch.testing.assert_close(both["loss_pos"], positives)
    centres = (alone[0]["loss_center"] + alone[1]["loss_center"]) / 2
    torch.testing.assert_close(both["loss_center"], centres)


def test_the_normaliser_of_negatives_has_no_gradient():
    model = tiny_auto_assign()
    model(BATCH)["loss_neg"].backward()
    assert model.head.center_prior.mean.grad is None
    assert model.head.bbox_pred.weight.grad is None  # nor have the weights
    assert model.head.objectness.weight.grad.any() and model.head.cls_score.weight.grad.any()


@pytest.mark.parametrize("key", ["box", "pos", "neg", "center"])
def test_loss_weights(key):
    weights = {"box": 5.0, "pos": 0.25, "neg": 0.75, "center": 0.75}
    once, thrice = (
        tiny_auto_assign(**{f"{key}_loss_weight": factor * weights[key]})(BATCH)
        for factor in (1, 3)
    )
    if key == "box":  # inside the exponent
        assert thrice["loss_pos"] > once["loss_pos"] + 0.1
    for name in once:
        if (key, name) != ("box", "loss_pos"):
            factor = 3 if name == f"loss_{key}" else 1
            torch.testing.assert_close(thrice[name], once[name] * factor)


def test_extreme_and_broken_predictions():
    gt = [objects([[2, 1, 62, 47]], [1])]
    model = tiny_auto_assign()
    for value in (60.0, -200.0, 6e4, -6e4, float("inf"), float("nan")):
        leaves = [torch.full((1, c, *s), value, requires_grad=True) for s in SHAPES for c in (K, 1)]
        distances = [torch.full((1, 4, *s), 6e4) for s in SHAPES]
        losses = training_losses(model, (leaves[::2], distances, leaves[1::2]), gt)
        finite = [x.isfinite().item() for x in (losses["loss_pos"], losses["loss_neg"])]
        assert finite == [value == value] * 2
        if abs(value) < float("inf"):
            sum(losses.values()).backward()
            assert all(x.grad.isfinite().all() for x in leaves)


def test_decoded_predictions():
    model = tiny_auto_assign()
    predictions = random_predictions(torch.Generator().manual_seed(0), 2)
    images = ImageList(torch.zeros(2, 3, 64, 64), [(48, 64), (30, 20)])
    features = [torch.zeros(2, 1, *s) for s in SHAPES]
    decoded = model.decode_predictions(images, features, predictions)
    assert decoded.logits.shape == (2, 64, K) and decoded.boxes.shape == (2, 64, 4)
    assert decoded.sizes == SHAPES and decoded.per_cell == 1 and decoded.valid.shape == (2, 64)
    assert decoded.valid.all()  # the padding of the smaller image, too
    assert decoded.points.tolist() == [[x, y] for x, y, _ in POINTS]
    assert decoded.strides.tolist() == [s for _, _, s in POINTS]
    # cell (1, 2) of the second level: the point (32, 16)
    boxes = decoded.split_levels(decoded.boxes)[1][:, 1 * 4 + 2]
    left, top, right, bottom = predictions[1][1][:, :, 1, 2].unbind(1)
    torch.testing.assert_close(
        boxes, torch.stack((32 - left, 16 - top, 32 + right, 16 + bottom), 1)
    )
    assert torch.equal(decoded.logits[1, 48 + 6], predictions[0][1][1, :, 1, 2])


def test_learns_a_batch():
    """From an untrained detector to one that finds the objects, with the prior staying usable."""
    model = tiny_auto_assign()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss = model(BATCH)
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
        losses.append(loss["loss_pos"].item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.head.center_prior.sigma.ne(1).any()
