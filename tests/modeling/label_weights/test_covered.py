"""Classes that nobody has looked for on an image: background there learns nothing of them.

Images have K = 3 classes; the loss of a logit of 0 is ln 2 = 0.693147 before any factor.
"""

import numpy as np
import pytest
import torch
from detectron2.layers import cat
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from label_weight_cases import ARCHS, batch_of, losses, model_of
from PIL import Image
from tiny_models import DENSE, NUM_CLASSES, build, tiny_cfg

from kd_d2.config.rules import ConfigError
from kd_d2.data.weighted_labels import WeightedLabelMapper
from kd_d2.modeling.detectors import auto_assign
from kd_d2.modeling.detectors.gfl_losses import quality_focal_loss
from kd_d2.modeling.label_weights import Attached, LabelWeights, weigh_labels

SOME = ([0, 2], [])
"""Covered classes of the two images of a batch: the second has none."""
ALL = [*range(NUM_CLASSES)]
WEIGHTS = [0.5, 0.25, 1.0, 0.75, 0.3]
UNCERTAIN = [[10.0, 10, 80, 90]]


def image_with(covered=None):
    gt = Instances((9, 9), gt_classes=torch.tensor([1]))
    if covered is not None:
        gt.covered_classes = Attached(torch.tensor(covered, dtype=torch.long), 1)
    return gt


def hidden_zeros(labels, gt):
    """Logits of 0 of anchors with these labels, on two levels, as the losses get them."""
    labels = [torch.tensor(x) for x in labels]
    split = len(labels[0]) // 2
    levels = [torch.zeros(len(gt), n, NUM_CLASSES) for n in (split, len(labels[0]) - split)]
    return cat(LabelWeights(use_covered=True).hide_uncovered(levels, labels, gt), dim=1)


def test_focal_loss_by_hand():
    """A term of background counts 0.75 / 4 * ln 2 = 0.129965; of an object, 0.25 / 4 * ln 2."""
    labels = [[3, 1, -1, 3], [3, 3, -1, 0]]
    # background: 1 of 3 classes, twice; all three, twice; objects: all three
    logits = hidden_zeros(labels, [image_with([0]), image_with()])
    found = model_of("ATSS").focal_loss(logits, torch.tensor(labels))
    assert found.item() == pytest.approx(
        (2 * 1 + 2 * 3 + 2 * 2) * 0.129965 + 2 * 0.043322, abs=1e-5
    )


def test_quality_focal_loss_by_hand():
    """A term of background counts ln 2 / 4; of an object of quality 0.5, nothing."""
    logits = hidden_zeros([[3, 1, 3]], [image_with([1, 2])])
    targets = torch.zeros_like(logits)
    targets[0, 1, 1] = 0.5
    found = quality_focal_loss(logits, targets).sum(-1)[0]
    assert found.tolist() == pytest.approx([2 * 0.173287, 2 * 0.173287, 2 * 0.173287], abs=1e-6)
    found = quality_focal_loss(hidden_zeros([[3, 1, 3]], [image_with([])]), targets).sum(-1)[0]
    assert found.tolist() == pytest.approx([0, 2 * 0.173287, 0], abs=1e-6)


@pytest.mark.parametrize("weights, expected", [(None, 8), ([1.0, 0.5, 0.0, 1.0], 5.5)])
def test_cross_entropy_of_regions_by_hand(weights, expected):
    """Background of 1 class, an object, one without weight in its loss, and background of all.

    So 1 + 3 + 1 + 3 terms of ln 2, or 1 + 0.5 * 3 + 0 + 3, for four regions.
    """
    cfg = tiny_cfg("FasterRCNN")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = cfg.MODEL.LABEL_WEIGHTS.COVERED = True
    model = build(cfg)
    weigh_labels(model, cfg)
    regions = []
    for classes, covered in (([3, 1, 3], [True, False, False]), ([3], [True, True, True])):
        n = len(classes)
        x = Instances((9, 9), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 8, 8]] * n)))
        x.gt_boxes, x.gt_classes = x.proposal_boxes, torch.tensor(classes)
        x.label_covered_classes = torch.tensor(covered).expand(n, -1)
        if weights is not None:
            at = 3 * len(regions)
            x.label_cls_weights = x.label_box_weights = torch.tensor(weights[at : at + n])
        regions.append(x)
    with EventStorage():
        found = model.roi_heads.box_predictor.losses(
            (torch.zeros(4, 4), torch.zeros(4, 12)), regions
        )
    assert found["loss_cls"].item() == pytest.approx(expected * 0.693147 / 4, abs=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("covered", [(None, None), (ALL, None), (ALL, ALL)])
def test_all_classes_covered_change_no_bit(arch, covered):
    for _ in range(3):  # fvcore's scripted focal loss rounds differently in its first calls
        plain = losses(arch, batch_of(), sigmoid=True)
        found = losses(arch, batch_of(covered=covered), sigmoid=True, COVERED=True)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(found[name], value), name


def gradients(arch, batch, **settings):
    """Of the class logits, (S, K) of S anchors or regions; their labels and images, (S,) each."""
    model = model_of(arch, sigmoid=True, **settings)
    logits, labels, images = [], [], []
    if arch in DENSE:
        model.head.register_forward_hook(lambda module, args, out: logits.extend(out[0]))
        label = model.label_anchors

        def labelled(*args):
            answers = label(*args)
            labels.extend(answers[0])
            images.extend(torch.full_like(x, i) for i, x in enumerate(answers[0]))
            return answers

        model.label_anchors = labelled
    else:
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if arch == "CascadeRCNN" else [predictors]:

            def watched(predictions, regions, usual=predictor.losses):
                logits.append(predictions[0])
                labels.extend(x.gt_classes for x in regions)
                images.extend(torch.full_like(x.gt_classes, i) for i, x in enumerate(regions))
                return usual(predictions, regions)

            predictor.losses = watched
    with EventStorage():
        torch.manual_seed(7)
        total = sum(model(batch).values())
    grads = torch.autograd.grad(total, logits)
    if arch in DENSE:
        grads = cat([permute_to_N_HWA_K(x, NUM_CLASSES) for x in grads], dim=1).flatten(0, 1)
    else:
        assert not cat(grads)[:, -1].any()
        grads = cat(grads)[:, :-1]
    return grads, cat(labels), cat(images)


@pytest.mark.parametrize("all_at_once", [False, True])
@pytest.mark.parametrize("arch", [x for x in ARCHS if x != "AutoAssign"])
def test_background_has_no_gradient_of_uncovered_classes(arch, all_at_once):
    """And all other logits have the one they had; also beside weights and boxes to ignore."""
    batch = {"weights": WEIGHTS, "ignore": UNCERTAIN} if all_at_once else {}
    others = {"ENABLED": True, "IGNORE": True} if all_at_once else {}
    plain, labels, images = gradients(arch, batch_of(**batch), **others)
    found, *same = gradients(arch, batch_of(**batch, covered=SOME), COVERED=True, **others)
    assert torch.equal(same[0], labels) and torch.equal(same[1], images)
    uncovered = torch.ones(2, NUM_CLASSES, dtype=torch.bool)
    for i, classes in enumerate(SOME):
        uncovered[i, classes] = False
    hidden = uncovered[images] & (labels == NUM_CLASSES)[:, None]
    assert hidden.any(0).all() and not hidden.all(0).any()
    assert plain[hidden].any() and not found[hidden].any()
    torch.testing.assert_close(found[~hidden], plain[~hidden])
    positive = (labels >= 0) & (labels < NUM_CLASSES)
    assert (uncovered[images] & positive[:, None] & (found != 0)).any()


@pytest.mark.parametrize("arch", ARCHS)
def test_other_losses_stay(arch):
    plain = losses(arch, batch_of(), sigmoid=True)
    found = losses(arch, batch_of(covered=SOME), sigmoid=True, COVERED=True)
    for name, value in plain.items():
        if name.startswith(("loss_cls", "loss_neg")):
            assert 0 < found[name] < value, name
        else:
            assert torch.equal(found[name], value), name
    assert losses(arch, batch_of(covered=SOME), sigmoid=True).keys() == plain.keys()


def negative_loss_of_auto_assign(covered):
    """The loss; the gradient of the class logits, and the probabilities, both (N, K, R)."""
    model, outputs = model_of("AutoAssign", COVERED=True), []
    model.head.register_forward_hook(lambda module, args, out: outputs.extend(out))
    with EventStorage():
        loss = model(batch_of(covered=covered))["loss_neg"]
    logits, _, objectness = outputs
    grads = torch.autograd.grad(loss, logits)
    found = [x.sigmoid() * y.sigmoid() for x, y in zip(logits, objectness, strict=True)]
    return loss.item(), *(cat([x.flatten(2) for x in y], dim=2).detach() for y in (grads, found))


def test_negative_loss_of_auto_assign(monkeypatch):
    """Of uncovered classes a location counts as much as it learns an object; slowly, by loops."""
    shares, usual = [], auto_assign.negative_weights
    monkeypatch.setattr(
        auto_assign, "negative_weights", lambda *args: shares.append(usual(*args)) or shares[-1]
    )
    plain, plain_grad, probabilities = negative_loss_of_auto_assign((None, None))
    found, grad, _ = negative_loss_of_auto_assign(SOME)
    weights, _ = shares

    sums = [0.0, 0.0]
    for n, classes in enumerate(SOME):
        for r in range(weights.shape[2]):
            learns = 1 - min(weights[n, :, r].tolist())
            for k in range(NUM_CLASSES):
                for i, factor in enumerate((1.0, 1.0 if k in classes else learns)):
                    x = probabilities[n, k, r].item() * weights[n, k, r].item() * factor
                    sums[i] -= x**2 * np.log1p(-x)
    assert found / plain == pytest.approx(sums[1] / sums[0], rel=1e-4)
    background = weights.amin(1) == 1
    assert background.any(1).all() and not background.all(1).any()
    assert plain_grad[0, 1, background[0]].any() and not grad[0, 1, background[0]].any()
    assert grad[1].any() and not grad[1][:, background[1]].any()
    assert torch.equal(grad[0, ::2], plain_grad[0, ::2])


def test_settings_of_covered_classes_alone():
    cfg = tiny_cfg()
    assert LabelWeights.from_config(cfg) is None
    cfg.MODEL.LABEL_WEIGHTS.COVERED = True
    settings = LabelWeights.from_config(cfg)
    assert (settings.use_covered, settings.use_weights, settings.use_ignore) == (True, False, False)


@pytest.mark.parametrize("arch", ["FasterRCNN", "CascadeRCNN"])
def test_a_softmax_is_refused(arch):
    with pytest.raises(
        ConfigError, match="softmax; set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True, or"
    ):
        model_of(arch, COVERED=True)
    model_of(arch, ENABLED=True)


def mapped(folder, cfg, **more):
    """An image with a car, as a training with this config gets it."""
    Image.fromarray(np.full((80, 100, 3), 90, np.uint8)).save(folder / "x.png")
    car = {"bbox": [10, 10, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": str(folder / "x.png"), "height": 80, "width": 100, "image_id": 1}
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (160,), "none"
    return WeightedLabelMapper(cfg)({**record, "annotations": [car], **more})


@pytest.mark.parametrize("arch", ["ATSS", "FasterRCNN"])
def test_from_the_record_to_the_loss(arch, tmp_path):
    """Where cars alone were looked for, other classes learn from cars at most."""
    cfg = tiny_cfg(arch)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = cfg.MODEL.LABEL_WEIGHTS.COVERED = True

    def bias_gradient(**more):
        torch.manual_seed(1)
        model = build(cfg).train()
        weigh_labels(model, cfg)
        with EventStorage():
            torch.manual_seed(7)
            found = model([mapped(tmp_path, cfg, **more)])
        found["loss_cls"].backward()
        if arch == "ATSS":
            return model.head.cls_score.bias.grad
        return model.roi_heads.box_predictor.cls_score.bias.grad[:NUM_CLASSES]

    usual, cars = bias_gradient(), bias_gradient(covered_classes=[0])
    assert cars[0] == usual[0] and (cars[1:] > 0).all() and (cars[1:] < usual[1:]).all()
    usual = bias_gradient(annotations=[])
    assert (usual > 0).all()
    cars = bias_gradient(annotations=[], covered_classes=[0])
    assert cars[0] == usual[0] and not cars[1:].any()


@pytest.mark.parametrize("student", ["RetinaNet", "FasterRCNN", "ATSS"])
@pytest.mark.parametrize("method", ["LGD", "PKD"])
def test_students_of_distillers(method, student, lgd_cfg, frozen_cfg):
    """LGD runs the student's losses a second time, on other features; there, too."""
    cfg = lgd_cfg(student, fpn_channels=64) if method == "LGD" else frozen_cfg(student, student)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = cfg.MODEL.LABEL_WEIGHTS.COVERED = True

    def found(covered):
        torch.manual_seed(1)
        model = build(cfg).train()
        weigh_labels(model.student, cfg)
        with EventStorage():
            torch.manual_seed(7)
            return model(batch_of(covered=covered))

    plain, same, other = found((None, None)), found((ALL, ALL)), found(SOME)
    for name, value in plain.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6, msg=name)
    of_classes = [name for name in plain if name.startswith("loss_cls")]
    assert len(of_classes) == (2 if method == "LGD" else 1)
    for name in of_classes:
        assert other[name] < plain[name], name
