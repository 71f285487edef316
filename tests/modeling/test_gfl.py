"""GFL: losses against loops over anchors, what has gradients, batches without objects, padding."""

import math

import pytest
import torch
from atss_cases import slow_iou
from detectron2.structures import Boxes
from fcos_cases import BATCH, EMPTY, K, image
from gfl_cases import (
    REG_MAX,
    SHAPES,
    slow_cells,
    slow_owners,
    slow_sides,
    slow_softmax,
    spread,
    tiny_gfl,
)

NAMES = ["loss_cls", "loss_box_reg", "loss_dfl"]
TINY = image([[17, 17, 18.5, 19], [33.2, 40.1, 34, 41]], [0, 2])  # between the centres of anchors


def slow_losses(model, batch):
    """The three losses with one Python number at a time."""
    features = model.backbone(model.preprocess_image(batch).tensor)
    outputs = model.head(list(features.values()))
    cls = box = dfl = weight_sum = 0.0
    num_total = positives = ignored = beyond = 0
    for n, sample in enumerate(batch):
        logits, bins = (
            torch.cat([x[n].flatten(1) for x in level], 1).T.double().tolist() for level in outputs
        )
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        cells = list(slow_cells(sample["image"].shape[-2:]))
        owners = slow_owners(cells, boxes, scale=2.0)
        num_total += max(1, sum(o is not None for o in owners))
        for r, (owner, (stride, (x, y), usable)) in enumerate(zip(owners, cells, strict=True)):
            if not usable:
                ignored += 1
                continue
            targets = [0.0] * K
            if owner is not None:
                positives += 1
                x1, y1, x2, y2 = (side / stride for side in boxes[owner])
                x, y = x / stride, y / stride
                left, top, right, bottom = slow_sides(bins[r])
                predicted = (x - left, y - top, x + right, y + bottom)
                iou = slow_iou(predicted, (x1, y1, x2, y2))
                targets[classes[owner]] = iou
                hull = (max(predicted[2], x2) - min(predicted[0], x1)) * (
                    max(predicted[3], y2) - min(predicted[1], y1)
                )
                areas = (left + right) * (top + bottom) + (x2 - x1) * (y2 - y1)
                union = areas / (1 + iou)  # since iou * union = areas - union
                weight = max(1 / (1 + math.exp(-z)) for z in logits[r])
                weight_sum += weight
                box += weight * (1 - iou + (hull - union) / hull)
                for i, t in enumerate((x - x1, y - y1, x2 - x, y2 - y)):
                    beyond += t > model.reg_max
                    t = min(max(t, 0), model.reg_max - 0.1)
                    p = slow_softmax(
                        bins[r][i * (model.reg_max + 1) : (i + 1) * (model.reg_max + 1)]
                    )
                    low = math.floor(t)
                    two = (low + 1 - t) * math.log(p[low]) + (t - low) * math.log(p[low + 1])
                    dfl -= weight * two / 4
            for z, target in zip(logits[r], targets, strict=True):
                p = 1 / (1 + math.exp(-z))
                entropy = -(target * math.log(p) + (1 - target) * math.log(1 - p))
                cls += (target - p) ** 2 * entropy
    assert positives > 5 and ignored > 5 and (beyond > 5) == (model.reg_max == 1)
    norm = max(1, weight_sum)
    return dict(zip(NAMES, (cls / num_total, 2 * box / norm, 0.25 * dfl / norm), strict=True))


@pytest.mark.parametrize("reg_max", [1, 16])  # shorter and longer than the distances
@pytest.mark.parametrize("bias", [-9.0, 3.0])  # sum of the weights below and above 1
def test_losses_equal_loops(bias, reg_max):
    model = spread(tiny_gfl(reg_max=reg_max))
    model.head.cls_score.bias.data.fill_(bias)
    batch = [*BATCH, EMPTY, TINY, image([[1, 3, 90, 61]], [1])]
    losses = model(batch)
    expected = slow_losses(model, batch)
    assert list(losses) == list(expected) == NAMES
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=5e-5), name


def one_anchor(model, logits, bins, label=1, box=(8.0, 8, 32, 24)):
    """Losses of one anchor of the finest level, around (16, 16)."""
    anchors = [Boxes(torch.tensor([[8.0, 8, 24, 24]])), *[Boxes(torch.zeros(0, 4))] * 2]
    empty = [torch.zeros(1, 0, K)] * 2, [torch.zeros(1, 0, 4 * (REG_MAX + 1))] * 2
    return model.losses(
        anchors,
        [logits, *empty[0]],
        [torch.tensor([label])],
        [bins, *empty[1]],
        [torch.tensor([box])],
    )


def test_losses_by_hand():
    """Uniform bins 0 to 4: all sides are 2 strides of 8 pixels, the box is (0, 0, 32, 32).

    Object (8, 8, 32, 24): IoU 384 / 1024 = 3 / 8, the hull is the larger box. In strides the
    distances are 1, 1, 2, 1: every bin has probability 1 / 5.
    """
    model = tiny_gfl(box_loss_weight=3.0, dfl_loss_weight=0.5)
    logits, bins = torch.zeros(1, 1, K), torch.zeros(1, 1, 4 * (REG_MAX + 1))
    losses = one_anchor(model, logits, bins)
    expected = math.log(2) * (2 * 0.25 + (1 / 2 - 3 / 8) ** 2)
    assert losses["loss_cls"].item() == pytest.approx(expected)
    # weighted by the best probability, 1 / 2, but the sum of weights counts as one at least
    assert losses["loss_box_reg"].item() == pytest.approx(3 * 0.5 * 5 / 8)
    assert losses["loss_dfl"].item() == pytest.approx(0.5 * 0.5 * math.log(5))


def test_the_weight_is_of_the_best_class_and_detached():
    model = tiny_gfl()
    logits = torch.tensor([[[2.0, -1.0, 0.0]]], requires_grad=True)  # the object's class is 1
    bins = torch.zeros(1, 1, 4 * (REG_MAX + 1), requires_grad=True)
    losses = one_anchor(model, logits, bins)
    weight = 1 / (1 + math.exp(-2))
    assert losses["loss_box_reg"].item() == pytest.approx(2 * weight * 5 / 8)
    assert losses["loss_dfl"].item() == pytest.approx(0.25 * weight * math.log(5))
    (losses["loss_box_reg"] + losses["loss_dfl"]).backward()
    assert bins.grad.any() and (logits.grad is None or not logits.grad.any())


def test_quality_target_is_detached():
    """The class loss must not move the boxes."""
    model = spread(tiny_gfl())
    model(BATCH)["loss_cls"].backward()
    gradient = model.head.bbox_pred.weight.grad
    assert gradient is None or not gradient.any()
    assert model.head.cls_score.weight.grad.any()


def test_weights_are_means_over_all_levels():
    """The weights of one level divide the losses of the others."""
    model = tiny_gfl()
    bins = torch.zeros(1, 1, 4 * (REG_MAX + 1))
    anchors = [Boxes(torch.tensor([[8.0, 8, 24, 24]]))] * 2 + [Boxes(torch.zeros(0, 4))]
    losses = model.losses(
        anchors,
        [torch.full((1, 1, K), 9.0), torch.full((1, 1, K), 2.0), torch.zeros(1, 0, K)],
        [torch.tensor([1, 1])],
        [bins, bins, bins[:, :0]],
        [torch.tensor([[8.0, 8, 32, 24], [-16, -16, 48, 48]])],  # the second is predicted exactly
    )
    u, v = 1 / (1 + math.exp(-9)), 1 / (1 + math.exp(-2))
    assert losses["loss_box_reg"].item() == pytest.approx(2 * u * 5 / 8 / (u + v))


def test_assignment_is_that_of_atss():
    model = tiny_gfl()
    anchors = model.anchor_generator([torch.zeros(2, 32, *s) for s in SHAPES])
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in BATCH])
    for n, sample in enumerate(BATCH):
        cells = list(slow_cells(sample["image"].shape[-2:]))
        objects = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        owners = slow_owners(cells, objects, scale=2.0)
        expected = [
            -1 if not usable else K if owner is None else classes[owner]
            for owner, (_, _, usable) in zip(owners, cells, strict=True)
        ]
        assert labels[n].tolist() == expected
        for r, owner in enumerate(owners):
            assert owner is None or boxes[n][r].tolist() == objects[owner]


@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]], [TINY]])
def test_images_without_positives_train(batch):
    model = tiny_gfl()
    losses = model(batch)
    sum(losses.values()).backward()
    assert list(losses) == NAMES
    assert all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is not BATCH[0]:
        assert losses["loss_box_reg"] == 0 and losses["loss_dfl"] == 0
        assert losses["loss_cls"] > 0
        assert not model.head.bbox_pred.weight.grad.any()


def test_an_object_smaller_than_a_cell_trains_where_it_holds_a_centre():
    losses = tiny_gfl()([image([[14.5, 22, 18, 26]], [2])])  # (16, 24) of p3
    assert losses["loss_box_reg"] > 0 and losses["loss_dfl"] > 0


def losses_of(model, predictions):
    features = [torch.zeros(2, 32, *s) for s in SHAPES]
    gt = [x["instances"] for x in BATCH]
    return model.forward_training(model.preprocess_image(BATCH), features, predictions, gt)


def test_gradient_reaches_only_positive_boxes_and_no_padding():
    model = spread(tiny_gfl())
    features = list(model.backbone(model.preprocess_image(BATCH).tensor).values())
    predictions = [[x.detach().requires_grad_() for x in level] for level in model.head(features)]
    sum(losses_of(model, predictions).values()).backward()
    logits, bins = predictions
    anchors = model.anchor_generator([torch.zeros(2, 32, *s) for s in SHAPES])
    labels = torch.stack(model.label_anchors(anchors, [x["instances"] for x in BATCH])[0])
    positive = ((labels >= 0) & (labels != K)).sum()
    assert sum(x.grad.abs().sum(1).ne(0).sum() for x in bins) == positive > 0
    classes = sum(x.grad.ne(0).all(1).sum() for x in logits)
    assert classes == (labels >= 0).sum() < labels.numel()
    # the second image is 64 wide
    assert not logits[0].grad[1, :, :, 8:].any() and logits[0].grad[1, :, :, :8].all()


def random_predictions(model):
    return [[torch.randn(2, c, *s) * 9 for s in SHAPES] for c in model.outputs_per_cell()]


def test_losses_of_float16_outputs():
    model = tiny_gfl()
    half = [[x.half() for x in level] for level in random_predictions(model)]
    expected = losses_of(model, [[x.float() for x in level] for level in half])
    for name, value in losses_of(model, half).items():
        assert torch.equal(value, expected[name])


def test_boxes_of_the_background_may_be_anything():
    model = tiny_gfl()
    logits, bins = random_predictions(model)
    expected = losses_of(model, (logits, bins))
    anchors = model.anchor_generator([torch.zeros(2, 32, *s) for s in SHAPES])
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in BATCH])
    learns = [(x >= 0) & (x < K) for x in labels]
    nan = float("nan")
    boxes = [b.where(at[:, None], nan) for b, at in zip(boxes, learns, strict=True)]
    model.label_anchors = lambda *args: (labels, boxes)
    at_level = torch.stack(learns).split([h * w for h, w in SHAPES], 1)
    bins = [x.where(at.view(2, 1, *x.shape[2:]), nan) for x, at in zip(bins, at_level, strict=True)]
    for name, value in losses_of(model, (logits, bins)).items():
        assert torch.equal(value, expected[name]), name
