"""PAA: labels and losses against loops over anchors; batches without objects; its config."""

import math

import pytest
import torch
from ddod_cases import spread
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from fcos_cases import BATCH, EMPTY, STRIDES, K, image, resnet_18_cfg
from paa_cases import slow_focal, slow_giou, slow_images, slow_losses, tiny_paa

from kd_d2.modeling.detectors.paa import PAA, add_paa_config
from kd_d2.modeling.detectors.paa_head import PAAHead

SMALL = image([[17, 17, 23, 19], [33, 40, 34, 41], [50, 50, 50.5, 60]], [0, 2, 1])
NAMES = ["loss_cls", "loss_box_reg", "loss_iou"]
VARIANTS = [
    {},
    {"split": "prefix", "single_candidate": "keep", "topk": 3},
    {"box_loss_weighting": "none", "iou_threshold": 0.4, "box_loss_weight": 2.0},
    {"objectness": "cop", "iou_loss_weight": 2.0},
    {"objectness": "iop", "iou_branch": False},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def predictions_of(model, batch):
    """Images, features, and the head's outputs as leaves."""
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    outputs = [[x.detach().requires_grad_() for x in level] for level in model.head(features)]
    return images, features, outputs


def label(model, batch):
    images, features, outputs = predictions_of(model, batch)
    decoded = model.decode_predictions(images, features, outputs)
    gt = [x["instances"] for x in batch]
    return model.label_anchors(model.anchor_generator(features), gt, decoded)


def loss_of(model, batch):
    """Losses, and the head's outputs as leaves."""
    images, features, outputs = predictions_of(model, batch)
    gt = [x["instances"] for x in batch]
    return model.forward_training(images, features, outputs, gt), outputs


# ---- labels and losses


@variants
def test_labels_equal_loops(variant):
    model, batch = spread(tiny_paa(**variant)), [*BATCH, EMPTY, SMALL]
    images, _, outputs = predictions_of(model, batch)
    labels, boxes = label(model, batch)
    expected = slow_images(model, images, outputs, batch)
    positive = 0
    for n, (*_, valid, owners) in enumerate(expected):
        gt = batch[n]["instances"]
        assert labels[n].shape == (8 * 12 + 4 * 6 + 2 * 3,) and boxes[n].shape == (126, 4)
        for r, owner in enumerate(owners):
            if not valid[r]:
                assert labels[n][r] == -1
            elif owner is None:
                assert labels[n][r] == K
            else:
                assert labels[n][r] == gt.gt_classes[owner]
                assert torch.equal(boxes[n][r], gt.gt_boxes.tensor[owner])
                positive += 1
    assert positive >= 5 and labels[2].eq(K).all()
    # the second image is 64 wide: 4 of 12, 2 of 6 and 1 of 3 columns see nothing but padding
    assert labels[1].eq(-1).sum() == 8 * 4 + 4 * 2 + 2


@variants
def test_losses_equal_loops(variant):
    model, batch = spread(tiny_paa(**variant)), [*BATCH, EMPTY, SMALL]
    images, _, outputs = predictions_of(model, batch)
    losses, expected = model(batch), slow_losses(model, images, outputs, batch)
    assert list(losses) == NAMES[: 3 if model.has_iou_branch else 2]
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4), name


def losses_by_hand(model, labels, deltas=None):
    """Of two anchors, 16 x 16 around (16, 16) and 32 x 32, and one object of 16 x 32."""
    boxes = type(BATCH[0]["instances"].gt_boxes)
    squares = torch.tensor([[8.0, 8, 24, 24], [0.0, 0, 32, 32]])
    box = torch.tensor([[8.0, 8, 24, 40]]).expand(2, 4)
    deltas = torch.zeros(1, 2, 4) if deltas is None else deltas
    outputs = [torch.zeros(1, 2, K)], [torch.tensor(labels)], [deltas], [box]
    return model.losses([boxes(squares)], *outputs, [torch.zeros(1, 2, 1)])


def test_losses_by_hand():
    """IoU 256 / 512 and 384 / 1152; no hull is wasted, and 128 of 32 x 40."""
    negative, positive = 0.75 * math.log(2) / 4, 0.25 * math.log(2) / 4
    first, second = 1 / 2, 1 / 3
    missed = 1 - second + 128 / 1280  # 1 - GIoU of the second
    model = tiny_paa(box_loss_weight=2.0, iou_loss_weight=3.0)
    losses = losses_by_hand(model, [1, 1])
    assert losses["loss_cls"].item() == pytest.approx((4 * negative + 2 * positive) / 2)
    weighted = (first * 0.5 + second * missed) / (first + second)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * weighted)
    assert losses["loss_iou"].item() == pytest.approx(3 * math.log(2))
    model.box_loss_weighting = "none"
    assert losses_by_hand(model, [1, 1])["loss_box_reg"].item() == pytest.approx(0.5 + missed)
    # a background anchor counts for the classes, an ignored one for nothing
    losses = losses_by_hand(model, [1, K])
    assert losses["loss_cls"].item() == pytest.approx(5 * negative + positive)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * 0.5)
    losses = losses_by_hand(model, [1, -1])
    assert losses["loss_cls"].item() == pytest.approx(2 * negative + positive)
    assert losses["loss_iou"].item() == pytest.approx(3 * math.log(2))


def test_boxes_that_miss_their_objects():
    """IoUs of 0 weigh nothing: the loss is small, but neither infinite nor without a graph."""
    model, far = tiny_paa(), torch.tensor([80.0, 80, -20, -20]).expand(1, 2, 4).clone()
    far.requires_grad_()
    losses = losses_by_hand(model, [1, 1], far)
    assert 0 <= losses["loss_box_reg"].item() < 1e-3
    losses["loss_box_reg"].backward()
    assert far.grad.isfinite().all()
    model.box_loss_weighting = "none"
    assert 1.3 < losses_by_hand(model, [1, 1], far)["loss_box_reg"].item() < 2.6


@variants
@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]]])
def test_images_without_objects_train(variant, batch):
    model = tiny_paa(**variant)
    losses = model(batch)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is not EMPTY:
        return
    assert not any(value for name, value in losses.items() if name != "loss_cls")
    # divided by the number of images
    torch.testing.assert_close(losses["loss_cls"], model([EMPTY])["loss_cls"])
    assert losses["loss_cls"] > 0 and not model.head.bbox_pred.weight.grad.any()


def test_an_objects_only_candidate():
    """The object is an anchor; its IoU with the others is below the threshold."""
    batch = [image([[8, 8, 16, 16]], [1], size=(64, 64))]
    settings = {"iou_threshold": 0.9, "anchor_scale": 1.0, "anchor_offset": 0.5}
    model = tiny_paa(**settings)
    assert label(model, batch)[0][0].eq(K).all()
    losses = model(batch)
    assert losses["loss_box_reg"] == 0 and losses["loss_iou"] == 0 and losses["loss_cls"] > 0
    (labels,), (boxes,) = label(tiny_paa(single_candidate="keep", **settings), batch)
    assert (labels != K).nonzero().tolist() == [[9]] and labels[9] == 1
    assert boxes[9].tolist() == [8, 8, 16, 16]


def test_labels_of_an_image_do_not_depend_on_the_batch():
    """From equal predictions: with two other images, and 32 columns of padding."""
    model, batch = spread(tiny_paa()), [BATCH[0], BATCH[1], EMPTY]
    images, features, outputs = predictions_of(model, batch)
    together = model.decode_predictions(images, features, outputs)
    gt = [x["instances"] for x in batch]
    labels, boxes = model.label_anchors(model.anchor_generator(features), gt, together)

    image = ImageList(images.tensor[1:2, :, :, :64], images.image_sizes[1:2])
    features = [f[1:2, :, :, : 64 // s] for f, s in zip(features, STRIDES.values(), strict=True)]
    outputs = [[x[1:2, ..., : f.shape[3]] for x, f in zip(o, features)] for o in outputs]
    alone = model.decode_predictions(image, features, outputs)
    own = model.label_anchors(model.anchor_generator(features), gt[1:2], alone)
    valid = together.valid[1]
    assert len(valid) == 126 and valid.sum() == 84 and labels[1][valid].eq(1).any()
    assert torch.equal(labels[1][valid], own[0][0]) and torch.equal(boxes[1][valid], own[1][0])


def test_gradients_reach_what_learns_and_nothing_else():
    model = spread(tiny_paa())
    labels = torch.stack(label(model, BATCH)[0])
    positive = ((labels >= 0) & (labels != K)).sum()
    losses, (logits, deltas, quality) = loss_of(model, BATCH)
    losses["loss_iou"].backward(retain_graph=True)
    assert sum(x.grad.ne(0).sum() for x in quality) == positive
    # the IoU of its target does not move the boxes
    assert all(x.grad is None or not x.grad.any() for x in deltas)
    losses["loss_box_reg"].backward(retain_graph=True)
    assert 0 < sum(x.grad.abs().sum(1).ne(0).sum() for x in deltas) <= positive
    assert all(x.grad is None for x in logits)  # nor do the costs move anything
    losses["loss_cls"].backward()
    assert sum(x.grad.ne(0).all(1).sum() for x in logits) == (labels >= 0).sum() < labels.numel()


def test_the_assignment_carries_no_gradient_and_is_made_once():
    model, calls = spread(tiny_paa()), []
    label_anchors = model.label_anchors
    model.label_anchors = lambda *args: calls.append(label_anchors(*args)) or calls[-1]
    model(BATCH)
    assert PAA.assigns_by_predictions and len(calls) == 1
    assert not any(x.requires_grad for part in calls[0] for x in part)


def test_costs_are_the_detectors_own():
    """With its loss weight and the parameters of its focal loss."""
    model = spread(tiny_paa(box_loss_weight=2.0, focal_loss_alpha=0.5, focal_loss_gamma=1.0))
    images, features, outputs = predictions_of(model, BATCH[:1])
    decoded = model.decode_predictions(images, features, outputs)
    pre = model.preassign(model.anchor_generator(features), [BATCH[0]["instances"]])
    costs = model.costs(pre, decoded).tolist()
    for i in range(0, len(costs), 9):
        logits, predicted = decoded.logits[0, pre.anchor[i]], decoded.boxes[0, pre.anchor[i]]
        focal = slow_focal(logits.tolist(), pre.classes[i].item(), 0.5, 1.0)
        giou, _ = slow_giou(predicted.tolist(), pre.boxes[i].tolist())
        assert costs[i] == pytest.approx(focal + 2 * (1 - giou), rel=1e-4)


def test_anothers_costs_select_anothers_positives():
    """The three parts of the assignment, of which two networks can share the last (LAD)."""
    student, teacher = spread(tiny_paa()), spread(tiny_paa(seed=1))
    images, features, outputs = predictions_of(teacher, BATCH)
    decoded = teacher.decode_predictions(images, features, outputs)
    pre = student.preassign(student.anchor_generator(features), [x["instances"] for x in BATCH])
    labels, boxes = student.select(pre, teacher.costs(pre, decoded))
    assert all(map(torch.equal, labels + boxes, sum(label(teacher, BATCH), [])))
    assert not all(map(torch.equal, labels, label(student, BATCH)[0]))


# ---- costs that are not finite


def test_steps_with_costs_that_are_not_finite_are_counted():
    model = spread(tiny_paa(max_non_finite_steps=3))
    good = model.head.bbox_pred.bias.data.clone()
    bad = good.clone().fill_(math.nan)

    def step(bias):
        model.head.bbox_pred.bias.data = bias
        with EventStorage() as storage:
            labels = label(model, BATCH)[0]
            return labels, {k: v for k, (v, _) in storage.latest().items()}

    labels, logged = step(good)
    assert logged["paa/non_finite_costs"] == 0
    positive = sum(x.ge(0).logical_and(x != K).sum().item() for x in labels)
    assert logged["paa/positives_per_object"] == pytest.approx(positive / 5)
    for bias in (bad, bad, good, bad, bad):  # never three in a row
        labels, logged = step(bias)
        assert (logged["paa/non_finite_costs"] > 0) == (bias is bad)
        assert all(x.eq(K).logical_or(x < 0).all() for x in labels) == (bias is bad)
    with pytest.raises(FloatingPointError, match="costs of PAA's anchors.*3 steps in a row"):
        step(bad)


# ---- configs


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(resnet_18_cfg("PAA", add_paa_config))
    assert type(model) is PAA and type(model.head) is PAAHead and model.num_classes == K
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert (model.topk, model.iou_threshold) == (9, 0.1)
    assert (model.box_loss_weight, model.iou_loss_weight) == (1.3, 0.5)
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.25, 2)
    assert model.bbox_reg_weights == (10, 10, 5, 5)
    assert (model.split, model.single_candidate) == ("filtered", "drop")
    assert model.box_loss_weighting == "iou" and model.has_iou_branch and model.score_voting
    assert (model.test_topk_candidates, model.test_score_thresh) == (1000, 0.05)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.6, 100)
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 5)
    assert [a.tensor[0].tolist() for a in anchors] == [
        [-s / 2, -s / 2, s / 2, s / 2] for s in (64, 128, 256, 512, 1024)
    ]
    assert list(model(BATCH)) == NAMES


def test_every_key_reaches_the_model():
    cfg = resnet_18_cfg("PAA", add_paa_config)
    paa = cfg.MODEL.PAA
    paa.IN_FEATURES, paa.NUM_CONVS, paa.NORM, paa.PRIOR_PROB = ["p3", "p4"], 1, "", 0.5
    paa.ANCHOR_SCALE, paa.ANCHOR_OFFSET, paa.BBOX_REG_WEIGHTS = 4.0, 0.5, (1.0, 2.0, 3.0, 4.0)
    paa.TOPK, paa.FOCAL_LOSS_ALPHA, paa.FOCAL_LOSS_GAMMA = 5, 0.5, 1.0
    paa.BOX_LOSS_WEIGHT, paa.IOU_LOSS_WEIGHT, paa.BOX_LOSS_WEIGHTING = 1.5, 0.25, "none"
    paa.IOU_THRESHOLD, paa.SPLIT, paa.SINGLE_CANDIDATE = 0.2, "prefix", "keep"
    paa.MAX_NON_FINITE_STEPS, paa.SCORE_VOTING = 3, False
    paa.IOU_BRANCH, paa.OBJECTNESS = False, "cop"
    paa.TOPK_CANDIDATES_TEST, paa.SCORE_THRESH_TEST, paa.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 2)
    assert [a.tensor[0].tolist() for a in anchors] == [[-12, -12, 20, 20], [-24, -24, 40, 40]]
    assert (model.topk, model.bbox_reg_weights) == (5, (1, 2, 3, 4))
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.5, 1)
    assert (model.box_loss_weight, model.iou_loss_weight) == (1.5, 0.25)
    assert (model.box_loss_weighting, model.iou_threshold) == ("none", 0.2)
    assert (model.split, model.single_candidate) == ("prefix", "keep")
    assert (model.max_non_finite_steps, model.score_voting) == (3, False)
    assert model.head.coefficients.out_channels == 9 and not model.has_iou_branch
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)


@pytest.mark.parametrize("key, weighting", [("auto", "iou"), ("iou", "iou"), ("none", "none")])
def test_weights_of_the_box_loss_of_a_plain_paa(key, weighting, tiny_cfg, build):
    cfg = tiny_cfg("PAA")
    assert cfg.MODEL.PAA.BOX_LOSS_WEIGHTING == "auto"
    cfg.MODEL.PAA.BOX_LOSS_WEIGHTING = key
    assert build(cfg).box_loss_weighting == weighting


def test_two_images_are_learned(tiny_cfg, build, random_batch, storage):
    model, batch = build(tiny_cfg("PAA")).train(), random_batch()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    history = []
    for _ in range(40):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    first, last = history[0], history[-1]
    assert last["loss_cls"] < 0.3 * first["loss_cls"]
    assert last["loss_box_reg"] < 0.5 * first["loss_box_reg"]
