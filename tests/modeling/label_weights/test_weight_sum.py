"""Losses divided by the sum of the weights, where these differ and where some are 0."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from label_weight_cases import batch_of, losses, model_of
from tiny_models import DENSE, build, tiny_cfg

from kd_d2.modeling.label_weights import LabelWeights, weigh_labels

WEIGHTS = [0.0, 0.25, 1.0, 0.1, 0.9]
BY_SUM = {"ENABLED": True, "NORMALIZE": "weight_sum"}


@pytest.mark.parametrize("arch", ["RetinaNet", "PAA", "FasterRCNN"])
def test_equal_weights_are_none_in_box_losses(arch):
    plain = losses(arch, batch_of())
    found = losses(arch, batch_of([0.25] * 5), **BY_SUM)
    name = "loss_rpn_loc" if arch == "FasterRCNN" else "loss_box_reg"
    torch.testing.assert_close(found[name], plain[name])


@pytest.mark.parametrize("arch", [x for x in DENSE if x != "AutoAssign"])
def test_dense_losses_equal_loops(arch):
    """They were divided by the number of the positives, those without weight included."""
    batch, answers = batch_of(WEIGHTS), []
    model = model_of(arch, ENABLED=True)
    label = model.label_anchors

    def labelled(*args):
        answers.append(label(*args))
        return answers[0]

    model.label_anchors = labelled
    with EventStorage():
        by_count = model(batch)
    weights = learned_weights(*answers[0][-2:], batch)
    assert {0.0, 0.25, 1.0} <= set(weights)  # DDOD gives no anchor the last two objects
    factor = len(weights) / sum(weights)
    by_sum = losses(arch, batch, **BY_SUM)
    for name, value in by_count.items():
        if (arch, name) != ("DDOD", "loss_cls"):  # which has positives of its own
            assert value > 0, name
            assert by_sum[name].item() == pytest.approx(value.item() * factor, rel=1e-5), name


def learned_weights(labels, boxes, batch):
    """The weight of each positive's object, found by class and box."""
    weights = []
    for x, of_image, learned in zip(batch, labels, boxes, strict=True):
        gt = x["instances"]
        objects = list(
            zip(
                gt.gt_classes.tolist(),
                gt.gt_boxes.tensor.tolist(),
                gt.gt_weights.tolist(),
                strict=True,
            )
        )
        for label, box in zip(of_image.tolist(), learned.tolist(), strict=True):
            weights += [w for c, b, w in objects if (label, box) == (c, b)]
    return weights


@pytest.mark.parametrize(
    "weights, sum_of_all",
    [(WEIGHTS, 2.25), ([0.0, 0.0, 0.0, 0.5, 0.0], 0.5), ([1.0] * 5, 5), ([0.0] * 5, 5)],
)
def test_auto_assign_counts_objects_without_weight(weights, sum_of_all):
    by_count = losses("AutoAssign", batch_of(weights), ENABLED=True)
    by_sum = losses("AutoAssign", batch_of(weights), **BY_SUM)
    by_count["loss_pos"] *= 5 / sum_of_all
    for name, value in by_count.items():
        torch.testing.assert_close(by_sum[name], value, msg=name)
    assert (by_sum["loss_pos"] > 0) == (sum(weights) > 0)


def test_factors_of_objects_by_hand():
    """Two of four objects have a box that counts as they do; the second image has one object."""
    gt = [Instances((9, 9)), Instances((9, 9)), Instances((9, 9))]
    for x, weights, of_boxes in zip(
        gt, ([0.5, 0.0, 0.25], [1.0], []), ([0.5, 0.0, 0.0], [0.0], []), strict=True
    ):
        x.gt_weights, x.gt_box_weights = torch.tensor(weights), torch.tensor(of_boxes)
    settings = LabelWeights(normalize="weight_sum")
    (of_object, of_box), counted = settings.of_objects(torch.zeros(7, 4), gt)
    factor = 4 / 1.75
    expected = [[0.5 * factor, 0, 0.25 * factor], [factor, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(of_object, torch.tensor(expected))
    real = [of_box[0].tolist(), of_box[1, :1].tolist()]
    assert real == [[1, 1, 0], [0]] and counted is None


def rpn_losses(weights, normalize):
    """Of two images with an object each, on which an anchor lies; its box is predicted too far to
    the right. The other two anchors of an image are background, and one is not sampled."""
    cfg = tiny_cfg("FasterRCNN")
    cfg.MODEL.LABEL_WEIGHTS.ENABLED, cfg.MODEL.LABEL_WEIGHTS.NORMALIZE = True, normalize
    model = build(cfg)
    rpn = model.proposal_generator
    anchors = Boxes([[0.0, 0, 8, 8], [20, 20, 28, 28], [40, 40, 48, 48]])
    labels = [torch.tensor([1, 0, -1]), torch.tensor([0, 1, 0])]
    boxes = [anchors.tensor] * 2
    rpn.label_and_sample_anchors = lambda anchors, gt: (labels, boxes)
    rpn.batch_size_per_image, rpn.box2box_transform = 4, Box2BoxTransform((1.0, 1, 1, 1))
    weigh_labels(model, cfg)
    gt = [Instances((64, 64), gt_boxes=anchors[i]) for i in (0, 1)]
    for x, weight in zip(gt, weights, strict=True):
        x.gt_weights = x.gt_box_weights = torch.tensor([weight])
    logits = torch.tensor([[0.0, -1, 9], [-2, 1, 0]])
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 0, 0], deltas[1, 1, 0] = 0.4, 0.2
    with EventStorage():
        answers = rpn.label_and_sample_anchors([anchors], gt)
        found = rpn.losses([anchors], [logits], answers[0], [deltas], answers[1])
    return found["loss_rpn_cls"].item(), found["loss_rpn_loc"].item()


@pytest.mark.parametrize(
    "weights, sum_of_all, sum_of_objects",
    [((1.0, 1.0), 5, 2), ((0.9, 0.5), 4.4, 1.4), ((0.0, 0.5), 3.5, 0.5), ((0.0, 0.0), 3, 2)],
)
def test_rpn_losses_by_hand(weights, sum_of_all, sum_of_objects):
    """Cross entropies of the objects are 0.693147 and 0.313262, of background 0.313262, 0.126928
    and 0.693147; box losses 0.4 and 0.2. Stock divides by 8.

    By the sum of weights, both are means over five sampled anchors and two positives, times their
    numbers.
    """
    cls = 0.693147 * weights[0] + 0.313262 * weights[1] + 1.133337
    box = 0.4 * weights[0] + 0.2 * weights[1]
    assert rpn_losses(weights, "count") == pytest.approx((cls / 8, box / 8), abs=1e-6)
    expected = cls / sum_of_all * 5 / 8, box / sum_of_objects * 2 / 8
    assert rpn_losses(weights, "weight_sum") == pytest.approx(expected, abs=1e-6)
