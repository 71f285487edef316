"""Weighted labels and boxes to ignore, of every detector: the same facts hold for all."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from label_weight_cases import ARCHS, SIZES, batch_of, losses, model_of
from tiny_models import DENSE, build, random_batch, tiny_cfg

from kd_d2.modeling.label_weights import Attached, LabelWeights, weigh_labels
from kd_d2.modeling.label_weights.rcnn import weighted_roi_losses


@pytest.mark.parametrize("arch", ARCHS)
def test_equal_weights_change_nothing(arch):
    plain = losses(arch, batch_of())
    settings = {"ENABLED": True, "IGNORE": True}
    for weights in (None, [1.0] * 5):
        found = losses(arch, batch_of(weights, ignore=[]), **settings)
        assert found.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("arch", ARCHS)
def test_losses_are_affine_in_each_weight(arch):
    """A weight multiplies what its object contributes, and nothing else."""
    others = [0.5, 0.25, 1.0, 0.75]

    def found(weight):
        return losses(arch, batch_of([*others[:2], weight, *others[2:]]), ENABLED=True)

    zero, half, one = found(0.0), found(0.5), found(1.0)
    changed = 0
    for name in one:
        torch.testing.assert_close(half[name], (zero[name] + one[name]) / 2, msg=name)
        changed += bool((one[name] - zero[name]).abs() > 1e-6)
    assert changed


@pytest.mark.parametrize("arch", [x for x in ARCHS if x != "AutoAssign"])
def test_box_weights_are_the_box_losses(arch):
    """Without them there is none; the class losses stay as they were."""
    plain = losses(arch, batch_of())
    found = losses(arch, batch_of([1.0] * 5, of_boxes=[0.0] * 5), ENABLED=True)
    for name, value in plain.items():
        if "cls" in name:
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)
        else:
            assert value > 0 and found[name] == 0, name


def test_box_weights_of_auto_assign():
    """Its one loss of classes and boxes loses what is the boxes', and only of those objects."""

    def found(of_boxes=None, box_loss_weight=5.0, **settings):
        model, distances = model_of("AutoAssign", **settings), []
        model.box_loss_weight = box_loss_weight
        model.head.register_forward_hook(lambda module, args, outputs: distances.extend(outputs[1]))
        with EventStorage():
            values = model(batch_of(of_boxes and [1.0] * 5, of_boxes))
        gradients = torch.autograd.grad(sum(values.values()), distances)
        return values, torch.stack([x.abs().sum((1, 2, 3)) for x in gradients]).sum(0)

    plain, moved = found()
    assert (moved > 0).all()
    same, moved_alike = found([1.0] * 5, ENABLED=True)
    assert all(torch.equal(same[name], plain[name]) for name in plain)
    assert torch.equal(moved_alike, moved)

    without, moved = found([0.0] * 5, BOX_LOSS="none")
    classes, _ = found(box_loss_weight=0.0)
    assert not moved.any() and without["loss_pos"] < plain["loss_pos"]
    for name in plain:
        assert torch.equal(without[name], classes[name]), name

    _, moved = found([1.0, 0.0, 1.0, 0.0, 0.0], BOX_LOSS="reliable")
    assert moved[0] > 0 == moved[1]


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_is_background_where_all_is_uncertain(arch):
    everywhere = [[-1000.0, -1000, 3000, 3000]]
    plain = losses(arch, batch_of(), IGNORE=True)
    found = losses(arch, batch_of(ignore=everywhere), IGNORE=True)
    for name in plain:
        if "box" in name or "loc" in name or name in ("loss_pos", "loss_center"):
            if arch in DENSE:
                torch.testing.assert_close(found[name], plain[name], msg=name)
        elif name == "loss_neg":
            assert plain[name] > 0 and found[name] == 0
    if arch in DENSE and arch != "AutoAssign":
        # what is left is the positives': without weight, that vanishes
        batch = batch_of([0.0] * 5, ignore=everywhere)
        alone = losses(arch, batch, IGNORE=True, ENABLED=True)
        assert alone["loss_cls"] == 0 and plain["loss_cls"] > found["loss_cls"] > 0
    if "RCNN" in arch:
        assert 0 < found["loss_rpn_cls"] < plain["loss_rpn_cls"]


@pytest.mark.parametrize("arch", ARCHS)
def test_images_without_objects_train(arch):
    batch = random_batch(SIZES, objects=(0, 0))
    for x in batch:
        gt = x["instances"]
        gt.gt_weights = gt.gt_box_weights = torch.zeros(0)
        gt.ignore_boxes = Attached(torch.tensor([[0.0, 0, 60, 60]]), 0)
    model = model_of(arch, ENABLED=True, IGNORE=True)
    with EventStorage():
        total = sum(model(batch).values())
    total.backward()
    assert total.isfinite()


def test_region_losses_by_hand():
    """Cross entropies 0.239545, 0.551445, 0.094923; box losses 0.4 and 0.2 of four regions."""
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]])
    assert roi_losses(logits, [0, 1, 2], [1.0, 1, 1], [0.0] * 3)[0] == pytest.approx(0.295304)
    weights = [0.9, 0.5, 1.0]
    assert roi_losses(logits, [0, 1, 2], weights, [0.0] * 3)[0] == pytest.approx(0.195412, abs=1e-6)
    by_sum = roi_losses(logits, [0, 1, 2], weights, [0.0] * 3, "weight_sum")
    assert by_sum[0] == pytest.approx(0.244265, abs=1e-6)
    logits, moved = torch.zeros(4, 3), [0.4, 0.2, 9.0, 9.0]
    for weights, normalize, expected in (
        ([1.0, 1, 1, 1], "count", 0.15),
        ([0.9, 0.5, 1, 1], "count", 0.115),
        ([0.9, 0.5, 1, 1], "weight_sum", 0.328571),
    ):
        found = roi_losses(logits, [0, 1, 2, 2], weights, moved, normalize)
        assert found[1] == pytest.approx(expected, abs=1e-6)


def roi_losses(logits, classes, weights, moved, normalize="count"):
    """Of regions that lie on their objects and are predicted so far away to the right."""
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform((1.0, 1, 1, 1)),
        num_classes=2,
        cls_agnostic_bbox_reg=True,
    )
    regions = Instances((9, 9), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 8, 8]] * len(classes))))
    regions.gt_boxes, regions.gt_classes = regions.proposal_boxes, torch.tensor(classes)
    regions.label_cls_weights = regions.label_box_weights = torch.tensor(weights)
    deltas = torch.zeros(len(classes), 4)
    deltas[:, 0] = torch.tensor(moved)
    with EventStorage():
        found = weighted_roi_losses(
            predictor, (logits, deltas), [regions], LabelWeights(normalize=normalize)
        )
    return found["loss_cls"].item(), found["loss_box_reg"].item()


def test_the_state_dict_and_inference_stay(monkeypatch):
    for arch in ("RetinaNet", "FasterRCNN", "ATSS"):
        plain, weighed = model_of(arch), model_of(arch, ENABLED=True, IGNORE=True)
        assert plain.state_dict().keys() == weighed.state_dict().keys()
        x = random_batch(SIZES, objects=(1, 1))
        for a, b in zip(plain.eval()(x), weighed.eval()(x), strict=True):
            assert torch.equal(a["instances"].scores, b["instances"].scores)


def test_others_are_refused():
    cfg = tiny_cfg()
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = True
    with pytest.raises(ValueError, match="losses of a Linear cannot be weighted"):
        weigh_labels(torch.nn.Linear(1, 1), cfg)
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = False
    weigh_labels(torch.nn.Linear(1, 1), cfg)


def test_attached_tensors_travel_with_instances():
    gt = Instances((9, 9), gt_boxes=Boxes(torch.zeros(3, 4)))
    gt.ignore_boxes = Attached(torch.ones(5, 4), 3)
    for item in (torch.tensor([True, False, True]), torch.tensor([2, 0]), slice(0, 2)):
        part = gt[item].to("cpu")
        assert len(part) == 2 and part.ignore_boxes.tensor.shape == (5, 4)


@pytest.mark.parametrize("student", ["RetinaNet", "FasterRCNN", "ATSS"])
@pytest.mark.parametrize("method", ["LGD", "PKD"])
def test_students_of_distillers(method, student, lgd_cfg, frozen_cfg):
    """Whoever teaches them; LGD runs the student's losses a second time, on other features."""

    usual = lgd_cfg(student, fpn_channels=64) if method == "LGD" else frozen_cfg(student, student)

    def found(weights=None, **settings):
        cfg = usual.clone()
        for key, value in settings.items():
            cfg.MODEL.LABEL_WEIGHTS[key] = value
        torch.manual_seed(1)
        model = build(cfg).train()
        weigh_labels(model.student, cfg)
        with EventStorage():
            torch.manual_seed(7)
            return model(batch_of(weights, ignore=[] if settings else None))

    plain = found()
    settings = {"ENABLED": True, "IGNORE": True}
    same, other = found([1.0] * 5, **settings), found([0.5] * 5, **settings)
    for name, value in plain.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6, msg=name)
    of_labels = [name for name in plain if name.startswith(("loss_cls", "loss_box_reg"))]
    assert len(of_labels) == (4 if method == "LGD" else 2)
    for name in of_labels:
        assert other[name] < plain[name] if "box" in name else other[name] != plain[name], name
