"""ATSS: losses against loops over anchors, batches without objects, the padding."""

import math

import pytest
import torch
from atss_cases import slow_assignment, slow_decode, slow_iou, tiny_atss
from fcos_cases import BATCH, EMPTY, STRIDES, K, image
from torch import nn

BRANCHES = ["iou", "centerness"]
TINY = image([[17, 17, 18.5, 19], [33.2, 40.1, 34, 41]], [0, 2])  # between the centres of anchors


def spread(model):
    """Box outputs that differ between the cells, and scales that differ between the levels."""
    nn.init.normal_(model.head.bbox_pred.weight, std=0.5)
    for scale, value in zip(model.head.scales, (1.0, 1.5, 2.0), strict=True):
        nn.init.constant_(scale.scale, value)
    return model


def slow_valid(anchors, size, stride):
    """Whether each anchor of a level lies on the image, padded to a multiple of 32."""
    height, width = (math.ceil(x / 32) * 32 for x in size)
    cells = (math.ceil(height / stride), math.ceil(width / stride))
    return [
        (a[1] + a[3]) / 2 / stride < cells[0] and (a[0] + a[2]) / 2 / stride < cells[1]
        for a in anchors
    ]


def slow_losses(model, batch, branch):
    """The three losses with one Python number at a time."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    outputs = model.head(list(features.values()))
    anchors = [a.tensor.tolist() for a in model.anchor_generator(list(features.values()))]
    flat = [a for level in anchors for a in level]
    cls = box = extra = weight_sum = 0.0
    num_total = positives = ignored = 0
    for n, sample in enumerate(batch):
        logits, deltas, quality = (
            torch.cat([x[n].flatten(1) for x in level], 1).T.tolist() for level in outputs
        )
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        size = tuple(sample["image"].shape[-2:])
        valid = [slow_valid(a, size, s) for a, s in zip(anchors, STRIDES.values(), strict=True)]
        owners = slow_assignment(anchors, valid, boxes, 9)
        num_total += max(1, sum(o is not None for o in owners))
        for r, (owner, usable) in enumerate(zip(owners, sum(valid, []), strict=True)):
            if not usable:
                ignored += 1
                continue
            for k in range(K):
                p = 1 / (1 + math.exp(-logits[r][k]))
                if owner is not None and classes[owner] == k:
                    cls += 0.25 * (1 - p) ** 2 * -math.log(p)
                else:
                    cls += 0.75 * p**2 * -math.log(1 - p)
            if owner is None:
                continue
            positives += 1
            target, predicted = boxes[owner], slow_decode(deltas[r], flat[r])
            iou = slow_iou(predicted, target)
            hull = (max(predicted[2], target[2]) - min(predicted[0], target[0])) * (
                max(predicted[3], target[3]) - min(predicted[1], target[1])
            )
            areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (predicted, target))
            union = areas / (1 + iou)  # since iou * union = areas - union
            giou = iou - (hull - union) / hull
            x, y = (flat[r][0] + flat[r][2]) / 2, (flat[r][1] + flat[r][3]) / 2
            ratio = [sorted((x - target[0], target[2] - x)), sorted((y - target[1], target[3] - y))]
            centerness = math.sqrt(ratio[0][0] / ratio[0][1] * ratio[1][0] / ratio[1][1])
            goal = iou if branch == "iou" else centerness
            weight = 1 if branch == "iou" else centerness
            box += weight * (1 - giou)
            weight_sum += weight
            p = 1 / (1 + math.exp(-quality[r][0]))
            extra -= goal * math.log(p) + (1 - goal) * math.log(1 - p)
    assert positives > 5 and ignored > 5
    return {
        "loss_cls": cls / num_total,
        "loss_box_reg": 2 * box / (num_total if branch == "iou" else max(1, weight_sum)),
        f"loss_{branch}": extra / num_total,
    }


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("branch", BRANCHES)
def test_losses_equal_loops(branch, offset):
    model = spread(tiny_atss(branch=branch, anchor_offset=offset))
    batch = [*BATCH, EMPTY, TINY]
    losses = model(batch)
    expected = slow_losses(model, batch, branch)
    assert list(losses) == list(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=5e-5), name


@pytest.mark.parametrize("branch", BRANCHES)
def test_losses_by_hand(branch):
    """One anchor, 16 x 16 around (16, 16), and one object: everything from the definition.

    Object (8, 8, 32, 24): IoU 256 / 384 = 2 / 3, and nothing of the hull is wasted. The distances
    from the centre are 8, 8, 16, 8: centerness sqrt(1 / 2).
    """
    model = tiny_atss(branch=branch, box_loss_weight=2.0, branch_loss_weight=3.0)
    boxes = [type(BATCH[0]["instances"].gt_boxes)(torch.tensor([[8.0, 8, 24, 24]]))]
    logits, deltas, quality = torch.zeros(1, 1, K), torch.zeros(1, 1, 4), torch.zeros(1, 1, 1)
    losses = model.losses(
        boxes,
        [logits],
        [torch.tensor([1])],
        [deltas],
        [torch.tensor([[8.0, 8, 32, 24]])],
        [quality],
    )
    # at probability 1/2 and with one positive: 0.25 ln 2 * (0.25 + 2 * 0.75)
    assert losses["loss_cls"].item() == pytest.approx(0.25 * math.log(2) * 1.75)
    # weighted by the centerness, but its sum counts as one at least
    weight = 1 if branch == "iou" else math.sqrt(0.5)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * weight / 3, rel=1e-5)
    assert losses[f"loss_{branch}"].item() == pytest.approx(3 * math.log(2))


def test_label_anchors_format():
    model = tiny_atss()
    features = [torch.zeros(3, 32, 64 // s, 96 // s) for s in STRIDES.values()]
    anchors = model.anchor_generator(features)
    gt = [BATCH[0]["instances"], BATCH[1]["instances"], EMPTY["instances"]]
    labels, boxes = model.label_anchors(anchors, gt)
    num_anchors = 8 * 12 + 4 * 6 + 2 * 3
    assert [x.shape for x in labels] == [(num_anchors,)] * 3
    assert [x.shape for x in boxes] == [(num_anchors, 4)] * 3
    assert set(labels[0].tolist()) <= {0, 1, 2, K} and (labels[0] < K).any()
    assert labels[2].eq(K).all()
    # the second image is 64 wide: 4 of 12, 2 of 6 and 1 of 3 columns see nothing but padding
    ignored = labels[1] == -1
    assert ignored.sum() == 8 * 4 + 4 * 2 + 2
    assert ignored[:96].view(8, 12)[:, 8:].all()
    # its object has IoU 3 / 7 with the anchors of 16 around (40, 24) and (40, 32) on p3, 1 / 3
    # with those around (32, 24) and (32, 32), and less than 1 / 4 with all other levels
    best = [3 * 12 + 5, 4 * 12 + 5]
    assert labels[1][best].tolist() == [1, 1]
    assert boxes[1][best].tolist() == [[30, 20, 44, 36]] * 2
    assert not (labels[1][96:] == 1).any()


def test_anchors():
    anchors = tiny_atss(anchor_scale=8.0).anchor_generator([torch.zeros(1, 1, 2, 2)] * 3)
    assert anchors[0].tensor[1].tolist() == [-24, -32, 40, 32]
    assert anchors[2].get_centers().tolist() == [[0, 0], [32, 0], [0, 32], [32, 32]]
    anchors = tiny_atss(anchor_offset=0.5).anchor_generator([torch.zeros(1, 1, 2, 2)] * 3)
    assert anchors[1].tensor[0].tolist() == [-8, -8, 24, 24]


def test_assignment_does_not_read_predictions():
    model, other = tiny_atss(), spread(tiny_atss(seed=1, branch="centerness"))
    features = [torch.rand(2, 32, 64 // s, 96 // s) for s in STRIDES.values()]
    gt = [x["instances"] for x in BATCH]
    first = model.label_anchors(model.anchor_generator(features), gt)
    second = other.label_anchors(other.anchor_generator([x + 1 for x in features]), gt)
    for a, b in zip(sum(first, []), sum(second, []), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]], [TINY]])
def test_images_without_positives_train(batch, branch):
    model = tiny_atss(branch=branch)
    losses = model(batch)
    sum(losses.values()).backward()
    assert losses.keys() == {"loss_cls", "loss_box_reg", f"loss_{branch}"}
    assert all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is not BATCH[0]:
        assert losses["loss_box_reg"] == 0 and losses[f"loss_{branch}"] == 0
        assert losses["loss_cls"] > 0
        assert not model.head.bbox_pred.weight.grad.any()


def test_an_object_smaller_than_a_cell_trains_where_it_holds_a_centre():
    model = tiny_atss()
    anchors = model.anchor_generator(
        [torch.zeros(1, 1, 64 // s, 96 // s) for s in STRIDES.values()]
    )
    labels, boxes = model.label_anchors(anchors, [image([[14.5, 22, 18, 26]], [2])["instances"]])
    assert (labels[0] == 2).nonzero().flatten().tolist() == [3 * 12 + 2]  # (16, 24) on p3
    losses = model([image([[14.5, 22, 18, 26]], [2])])
    assert losses["loss_box_reg"] > 0


def test_padding_of_the_batch_is_ignored():
    """Anchors in the padding of the smaller of two images get no gradient."""
    model = tiny_atss()
    small = image([[30, 20, 44, 36]], [1], size=(64, 64))
    images = model.preprocess_image([small, EMPTY])
    shapes = [(64 // s, 96 // s) for s in STRIDES.values()]
    features = [torch.zeros(2, 32, *s) for s in shapes]
    predictions = tuple(
        [torch.zeros(2, c, *s, requires_grad=True) for s in shapes] for c in (K, 4, 1)
    )
    gt = [small["instances"], EMPTY["instances"]]
    model.forward_training(images, features, predictions, gt)["loss_cls"].backward()
    gradient = predictions[0][0].grad
    assert not gradient[0, :, :, 8:].any() and gradient[0, :, :, :8].all() and gradient[1].all()


def test_image_of_its_own_size_has_no_padding():
    model = tiny_atss()
    anchors = model.anchor_generator(
        [torch.zeros(1, 1, 64 // s, 96 // s) for s in STRIDES.values()]
    )
    for size in ((64, 96), (33, 65), (60, 90)):  # all padded to 64 x 96
        assert all(v.all() for v in model.valid_anchors(anchors, [size]))
    valid = model.valid_anchors(anchors, [(32, 64), (64, 96)])
    assert [v.sum(1).tolist() for v in valid] == [[4 * 8, 96], [2 * 4, 24], [2, 6]]


@pytest.mark.parametrize("branch", BRANCHES)
def test_gradient_reaches_only_positive_boxes(branch):
    model = spread(tiny_atss(branch=branch))
    images = model.preprocess_image(BATCH)
    features = list(model.backbone(images.tensor).values())
    predictions = [[x.detach().requires_grad_() for x in level] for level in model.head(features)]
    gt = [x["instances"] for x in BATCH]
    sum(model.forward_training(images, features, predictions, gt).values()).backward()
    labels = torch.stack(model.label_anchors(model.anchor_generator(features), gt)[0])
    positive = ((labels >= 0) & (labels != K)).sum()
    touched = sum(x.grad.abs().sum(1).ne(0).sum() for x in predictions[1])
    quality = sum(x.grad.ne(0).sum() for x in predictions[2])
    classes = sum(x.grad.ne(0).all(1).sum() for x in predictions[0])
    assert 0 < touched <= positive and quality == positive
    assert classes == (labels >= 0).sum() < labels.numel()


def test_iou_target_is_detached():
    """The third loss must not move the boxes."""
    model = spread(tiny_atss())
    model(BATCH)["loss_iou"].backward()
    gradient = model.head.bbox_pred.weight.grad
    assert gradient is None or not gradient.any()
    assert model.head.quality.weight.grad.any()
