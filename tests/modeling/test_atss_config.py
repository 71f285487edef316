"""Every key of MODEL.ATSS reaches the detector; the head's names and initial values."""

import math

import pytest
import torch
from atss_cases import tiny_atss
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg
from torch import nn

from kd_d2.modeling.detectors import ATSS, ATSSHead, add_atss_config


def atss_cfg():
    return resnet_18_cfg("ATSS", add_atss_config)


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(atss_cfg())
    assert type(model) is ATSS and model.num_classes == K
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert (model.branch, model.topk, model.box_loss_weight) == ("iou", 9, 2.0)
    assert (model.branch_loss_weight, model.focal_loss_alpha, model.focal_loss_gamma) == (
        1,
        0.25,
        2,
    )
    assert model.bbox_reg_weights == (10, 10, 5, 5)
    assert (model.test_topk_candidates, model.test_score_thresh) == (1000, 0.05)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.6, 100)
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 5)
    assert [a.tensor[0].tolist() for a in anchors] == [
        [-s / 2, -s / 2, s / 2, s / 2] for s in (64, 128, 256, 512, 1024)
    ]
    losses = model(BATCH)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_iou"}
    sum(losses.values()).backward()


def test_every_key_reaches_the_model():
    cfg = atss_cfg()
    atss = cfg.MODEL.ATSS
    atss.IN_FEATURES, atss.BRANCH = ["p3", "p4"], "centerness"
    atss.NUM_CONVS, atss.NORM, atss.PRIOR_PROB = 1, "", 0.5
    atss.ANCHOR_SCALE, atss.ANCHOR_OFFSET, atss.BBOX_REG_WEIGHTS = 4.0, 0.5, (1.0, 2.0, 3.0, 4.0)
    atss.TOPK, atss.FOCAL_LOSS_ALPHA, atss.FOCAL_LOSS_GAMMA = 5, 0.5, 1.0
    atss.BOX_LOSS_WEIGHT, atss.BRANCH_LOSS_WEIGHT = 1.5, 0.5
    atss.TOPK_CANDIDATES_TEST, atss.SCORE_THRESH_TEST, atss.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    assert (model.branch, model.topk, model.bbox_reg_weights) == ("centerness", 5, (1, 2, 3, 4))
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 2)
    assert [a.tensor[0].tolist() for a in anchors] == [[-12, -12, 20, 20], [-24, -24, 40, 40]]
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.5, 1)
    assert (model.box_loss_weight, model.branch_loss_weight) == (1.5, 0.5)
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)


@pytest.mark.parametrize("key", ["box", "branch"])
def test_loss_weights_are_factors(key):
    once = tiny_atss(**{f"{key}_loss_weight": 1.0})(BATCH)
    thrice = tiny_atss(**{f"{key}_loss_weight": 3.0})(BATCH)
    scaled = {"box": "loss_box_reg", "branch": "loss_iou"}[key]
    for name in once:
        torch.testing.assert_close(thrice[name], once[name] * (3 if name == scaled else 1))


def test_unknown_branch():
    with pytest.raises(ValueError, match="MODEL.ATSS.BRANCH is 'IoU': it must be"):
        tiny_atss(branch="IoU")


# ---- head


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return ATSSHead(input_shape=shapes, num_classes=K, **kwargs)


def test_parameter_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in head_of().named_parameters()}
    expected = {}
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in (0, 3, 6, 9):  # convolutions without bias
            expected[f"{tower}.{i}.weight"] = (64, 64, 3, 3)
            expected[f"{tower}.{i + 1}.weight"] = expected[f"{tower}.{i + 1}.bias"] = (64,)
    for name, channels in (("cls_score", K), ("bbox_pred", 4), ("quality", 1)):
        expected[f"{name}.weight"] = (channels, 64, 3, 3)
        expected[f"{name}.bias"] = (channels,)
    expected |= {f"scales.{i}.scale": (1,) for i in range(5)}
    assert shapes == expected
    assert isinstance(head_of().cls_subnet[1], nn.GroupNorm)


def test_initial_values():
    torch.manual_seed(0)
    head = head_of()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(head.cls_score.bias, torch.full((K,), -math.log(99)))
    assert not head.bbox_pred.bias.any() and not head.quality.bias.any()
    assert all(s.scale.item() == 1 for s in head.scales)


def test_scales_multiply_the_deltas_of_their_level():
    head = head_of(levels=2)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    _, deltas, _ = head([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 1)])
    assert deltas[0][0, :, 1, 1].tolist() == [0.5, -1, 2, 0]
    assert deltas[1][0, :, 0, 0].tolist() == [1.5, -3, 6, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([torch.rand(1, 64, 2, 2)] * 2)[1][0].dtype == torch.float32


def test_quality_is_on_the_box_tower():
    head = head_of(levels=1, num_convs=1)
    head([torch.rand(1, 64, 4, 4)])[2][0].sum().backward()
    assert head.bbox_subnet[0].weight.grad is not None and head.cls_subnet[0].weight.grad is None


@pytest.mark.parametrize("norm", ["", "BN"])
def test_other_norms(norm):
    head = head_of(channels=20, levels=2, num_convs=2, norm=norm)
    outputs = head([torch.rand(2, 20, 4, 4), torch.rand(2, 20, 2, 2)])
    assert [len(x) for x in outputs] == [2, 2, 2]
    assert (head.cls_subnet[0].bias is None) == bool(norm)
    assert isinstance(head.cls_subnet[1], CycleBatchNormList if norm else nn.ReLU)


def test_errors_name_the_keys_of_atss():
    with pytest.raises(ValueError, match="MODEL.ATSS.NORM 'GN'.*cannot divide 48 channels"):
        head_of(channels=48)
    shapes = [ShapeSpec(channels=32, stride=8), ShapeSpec(channels=64, stride=16)]
    with pytest.raises(ValueError, match=r"towers of ATSS.*equal channels.*\[32, 64\]"):
        ATSSHead(input_shape=shapes, num_classes=K)
    with pytest.raises(ValueError, match="5 levels got 1 features"):
        head_of()([torch.rand(1, 64, 4, 4)])
