"""DDOD: losses against loops over anchors, the counts of the levels, batches without objects."""

import copy
import math

import pytest
import torch
from atss_cases import slow_decode, slow_iou
from ddod_cases import slow_owners, slow_quality, spread, tiny_ddod
from fcos_cases import BATCH, EMPTY, STRIDES, K, image

TINY = image([[17, 17, 18.5, 19], [33.2, 40.1, 34, 41]], [0, 2])  # between the centres of anchors
NAMES = ["loss_cls", "loss_box_reg", "loss_iou"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_valid(anchor, stride, size):
    """Whether an anchor lies on the image, padded to a multiple of 32."""
    height, width = (math.ceil(x / 32) * 32 for x in size)
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return x / stride < math.ceil(width / stride) and y / stride < math.ceil(height / stride)


def slow_factors(counts):
    low, high = min(counts), max(counts)
    return [2 - (n - low) / (high - low + 1e-10) for n in counts]


def slow_giou(a, b):
    iou = slow_iou(a, b)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) / (1 + iou)
    return iou - (hull - union) / hull


def slow_losses(model, batch, counts):
    """The three losses with one Python number at a time.

    Args:
        counts: positives of each level so far, for the two assignments; increased.
    """
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    outputs = model.head(features)
    anchors, level_of = [], []
    for level, of_level in enumerate(model.anchor_generator(features)):
        anchors += of_level.tensor.tolist()
        level_of += [level] * len(of_level)
    strides = list(STRIDES.values())
    centres = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
    num_total, terms = [0, 0], []  # (assignment, level, name, value)
    for n, sample in enumerate(batch):
        logits, deltas, quality = (
            torch.cat([x[n].flatten(1) for x in level], 1).T.double().tolist() for level in outputs
        )
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        size = tuple(sample["image"].shape[-2:])
        valid = [slow_valid(a, strides[i], size) for a, i in zip(anchors, level_of, strict=True)]
        predicted = [slow_decode(d, a) for d, a in zip(deltas, anchors, strict=True)]
        probabilities = [[sigmoid(z) for z in x] for x in logits]
        for which, exponent in enumerate((0.8, 0.6)):
            qualities = [
                slow_quality(probabilities, predicted, b, c, exponent)
                for b, c in zip(boxes, classes, strict=True)
            ]
            owners = slow_owners(centres, valid, qualities, boxes, 9)
            num_total[which] += max(1, sum(o is not None for o in owners))
            for r, owner in enumerate(owners):
                counts[which][level_of[r]] += owner is not None
                if which == 0 and valid[r]:
                    for k, p in enumerate(probabilities[r]):
                        hit = owner is not None and classes[owner] == k
                        loss = 0.25 * (1 - p) ** 2 * -math.log(p)
                        loss = loss if hit else 0.75 * p**2 * -math.log(1 - p)
                        terms.append((0, level_of[r], "loss_cls", loss))
                if which == 1 and owner is not None:
                    iou = slow_iou(predicted[r], boxes[owner])
                    giou, p = slow_giou(predicted[r], boxes[owner]), sigmoid(quality[r][0])
                    bce = -(iou * math.log(p) + (1 - iou) * math.log(1 - p))
                    terms.append((1, level_of[r], "loss_box_reg", 2 * (1 - giou)))
                    terms.append((1, level_of[r], "loss_iou", bce))
    losses = dict.fromkeys(NAMES, 0.0)
    factors = [slow_factors(c) for c in counts]
    for which, level, name, value in terms:
        losses[name] += factors[which][level] * value / num_total[which]
    return losses


def test_losses_equal_loops_while_the_counts_grow():
    model = spread(tiny_ddod())
    resumed_at = [2, 20, 11]
    counts = [0, 0, 0], list(resumed_at)
    model.box_positives += torch.tensor(resumed_at)
    for batch in ([EMPTY], [*BATCH, EMPTY, TINY], BATCH[:1], [TINY, BATCH[1]]):
        losses = model(batch)
        expected = slow_losses(model, batch, counts)
        assert list(losses) == list(expected)
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected[name], rel=1e-4), name
        assert (model.cls_positives.tolist(), model.box_positives.tolist()) == counts
    of_boxes = [x - y for x, y in zip(counts[1], resumed_at, strict=True)]
    assert counts[0] != of_boxes and min(counts[0][:2] + of_boxes[:2]) > 0


def test_losses_by_hand():
    """Two levels of one anchor each, and one object; everything from the definition.

    Object (8, 8, 32, 24) has IoU 256 / 384 = 2 / 3 with the first anchor, 16 x 16 around (16, 16),
    and no hull is wasted. It is the first anchor's for the boxes, and the second's for the classes.
    """
    model = tiny_ddod(box_loss_weight=2.0, iou_loss_weight=3.0)
    model.box_positives += torch.tensor([0, 4, 1])
    boxes = type(BATCH[0]["instances"].gt_boxes)
    anchors = [
        boxes(torch.tensor([x])) for x in ([8.0, 8, 24, 24], [0.0, 0, 32, 32], [0.0, 0, 1, 1])
    ]
    logits, deltas, quality = ([torch.zeros(1, 1, c)] * 3 for c in (K, 4, 1))
    target = torch.tensor([[8.0, 8, 32, 24]]).expand(3, 4)
    labels = torch.tensor([K, 1, -1]), torch.tensor([1, K, -1])
    losses = model.losses(anchors, logits, *([x] for x in labels), deltas, [target], quality)
    # at probability 1/2: levels weigh 2 (none), 1 (one positive), 2 (none, and ignored)
    negative, positive = 0.75 * math.log(2) / 4, 0.25 * math.log(2) / 4
    expected = 2 * 3 * negative + positive + 2 * negative
    assert losses["loss_cls"].item() == pytest.approx(expected)
    # 1, 4 and 1 boxes so far: the first level weighs 2
    assert losses["loss_box_reg"].item() == pytest.approx(2 * 2 / 3, rel=1e-5)
    assert losses["loss_iou"].item() == pytest.approx(2 * 3 * math.log(2))
    assert model.cls_positives.tolist() == [0, 1, 0] and model.box_positives.tolist() == [1, 4, 1]


def predictions_of(model, batch):
    """Images, features, and the head's outputs as leaves."""
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    outputs = [[x.detach().requires_grad_() for x in level] for level in model.head(features)]
    return images, features, outputs


def label(model, batch, by=None):
    """The assignment of a batch, by the predictions of ``by``."""
    images, features, outputs = predictions_of(by or model, batch)
    decoded = (by or model).decode_predictions(images, features, outputs)
    gt = [x["instances"] for x in batch]
    return model.label_anchors(model.anchor_generator(features), gt, decoded)


def test_label_anchors_format():
    model = spread(tiny_ddod())
    assignment = label(model, [*BATCH, EMPTY])
    num_anchors = 8 * 12 + 4 * 6 + 2 * 3
    cls_labels, box_labels, boxes = assignment
    assert [x.shape for x in cls_labels + box_labels] == [(num_anchors,)] * 6
    assert [x.shape for x in boxes] == [(num_anchors, 4)] * 3
    for labels in (cls_labels, box_labels):
        assert set(labels[0].tolist()) <= {0, 1, 2, K} and (labels[0] < K).any()
        assert labels[2].eq(K).all()
        # the second image is 64 wide: 4 of 12, 2 of 6 and 1 of 3 columns see nothing but padding
        ignored = labels[1] == -1
        assert ignored.sum() == 8 * 4 + 4 * 2 + 2
        assert ignored[:96].view(8, 12)[:, 8:].all()
        assert set(labels[1].tolist()) == {-1, 1, K}
    learnt = boxes[1][box_labels[1] == 1]
    assert learnt.tolist() == [[30, 20, 44, 36]] * len(learnt)


def test_teachers_predictions_assign():
    student, teacher = spread(tiny_ddod()), spread(tiny_ddod(seed=1))
    of_teacher, own = label(student, BATCH, by=teacher), label(student, BATCH)
    for mine, theirs in zip(sum(of_teacher, []), sum(label(teacher, BATCH), []), strict=True):
        assert torch.equal(mine, theirs)
    assert not all(torch.equal(a, b) for a, b in zip(of_teacher[0], own[0], strict=True))
    # and are what the student learns
    student.label_anchors = lambda *args: of_teacher
    images, features, outputs = predictions_of(student, BATCH)
    gt = [x["instances"] for x in BATCH]
    losses = student.forward_training(images, features, outputs, gt)
    logits, deltas, quality = student._transpose_dense_predictions(outputs, [K, 4, 1])
    cls_labels, box_labels, targets = of_teacher
    expected = student.losses(
        student.anchor_generator(features),
        logits,
        cls_labels,
        box_labels,
        deltas,
        targets,
        quality,
    )
    # the counts doubled in between, which leaves the weights of the levels as they were
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])


def test_assignment_is_by_the_predictions_and_made_once():
    model = spread(tiny_ddod())
    calls, label_anchors = [], model.label_anchors
    model.label_anchors = lambda *args: calls.append(args) or label_anchors(*args)
    model(BATCH)
    ((_, gt, decode),) = calls
    with torch.no_grad():
        decoded = decode()
    assert model.assigns_by_predictions and len(gt) == 2
    assert not decoded.boxes.requires_grad and not decoded.logits.requires_grad


@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]], [TINY]])
def test_images_without_positives_train(batch):
    model = tiny_ddod()
    losses = model(batch)
    sum(losses.values()).backward()
    assert list(losses) == NAMES and all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is not BATCH[0]:
        assert losses["loss_box_reg"] == 0 and losses["loss_iou"] == 0 and losses["loss_cls"] > 0
        assert not model.head.bbox_pred.weight.grad.any()
        assert not model.cls_positives.any() and not model.box_positives.any()


def test_padding_of_the_batch_is_ignored():
    """Anchors in the padding of the smaller of two images get no gradient."""
    model = tiny_ddod()
    images, features, outputs = predictions_of(model, [BATCH[1], EMPTY])
    gt = [BATCH[1]["instances"], EMPTY["instances"]]
    model.forward_training(images, features, outputs, gt)["loss_cls"].backward()
    gradient = outputs[0][0].grad
    assert not gradient[0, :, :, 8:].any() and gradient[0, :, :, :8].all() and gradient[1].all()


def test_gradients_reach_what_learns_and_nothing_else():
    model = spread(tiny_ddod())
    images, features, outputs = predictions_of(model, BATCH)
    gt = [x["instances"] for x in BATCH]
    cls_labels, box_labels, _ = (torch.stack(x) for x in label(model, BATCH))
    losses = model.forward_training(images, features, outputs, gt)

    losses["loss_iou"].backward(retain_graph=True)
    positive = ((box_labels >= 0) & (box_labels != K)).sum()
    assert sum(x.grad.ne(0).sum() for x in outputs[2]) == positive
    # the IoU of its target does not move the boxes
    assert all(x.grad is None or not x.grad.any() for x in outputs[1])

    sum(losses.values()).backward()
    assert 0 < sum(x.grad.abs().sum(1).ne(0).sum() for x in outputs[1]) <= positive
    classes = sum(x.grad.ne(0).all(1).sum() for x in outputs[0])
    assert classes == (cls_labels >= 0).sum() < cls_labels.numel()


# ---- counts of positives


def test_counts_are_saved_and_read():
    """A resumed training goes on with the same weights of the levels."""
    first, resumed = spread(tiny_ddod()), tiny_ddod()
    first(BATCH)
    first.cls_positives += torch.tensor([1, 10, 100])
    first.box_positives += torch.tensor([2, 20, 200])
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    expected, forgetful = first(BATCH[1:]), spread(tiny_ddod())(BATCH[1:])
    for name, value in resumed(BATCH[1:]).items():
        assert torch.equal(value, expected[name]) and not torch.equal(value, forgetful[name])
    assert torch.equal(first.cls_positives, resumed.cls_positives)
    assert torch.equal(first.box_positives, resumed.box_positives)


def test_counts_grow_in_training_only():
    model = spread(tiny_ddod())
    model(BATCH)
    before = model.cls_positives.clone(), model.box_positives.clone()
    model.eval()
    model([{"image": x["image"]} for x in BATCH])
    images, features, outputs = predictions_of(model, BATCH)
    model.forward_training(images, features, outputs, [x["instances"] for x in BATCH])
    label(model.train(), BATCH)
    assert torch.equal(before[0], model.cls_positives)
    assert torch.equal(before[1], model.box_positives) and before[1].any()
