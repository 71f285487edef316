"""Every key of MODEL.AUTOASSIGN reaches the detector; the head's names and initial values."""

import math

import pytest
import torch
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg
from torch import nn

from kd_d2.modeling.detectors import AutoAssign, AutoAssignHead, add_auto_assign_config


def auto_assign_cfg():
    return resnet_18_cfg("AutoAssign", add_auto_assign_config)


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(auto_assign_cfg())
    assert type(model) is AutoAssign and model.num_classes == K
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    weights = [getattr(model, f"{key}_loss_weight") for key in ("box", "pos", "neg", "center")]
    assert weights == [5, 0.25, 0.75, 0.75]
    assert (model.test_topk_candidates, model.test_score_thresh) == (1000, 0.05)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.6, 100)
    assert len(model.head.cls_subnet) == len(model.head.bbox_subnet) == 4 * 3
    losses = model(BATCH)
    assert losses.keys() == {"loss_pos", "loss_neg", "loss_center"}
    sum(losses.values()).backward()


def test_every_key_reaches_the_model():
    cfg = auto_assign_cfg()
    node = cfg.MODEL.AUTOASSIGN
    node.IN_FEATURES, node.NUM_CONVS, node.NORM, node.PRIOR_PROB = ["p3", "p4"], 1, "", 0.5
    node.BOX_LOSS_WEIGHT, node.POS_LOSS_WEIGHT = 1.0, 2.0
    node.NEG_LOSS_WEIGHT, node.CENTER_LOSS_WEIGHT = 3.0, 4.0
    node.TOPK_CANDIDATES_TEST, node.SCORE_THRESH_TEST, node.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    weights = [getattr(model, f"{key}_loss_weight") for key in ("box", "pos", "neg", "center")]
    assert weights == [1, 2, 3, 4]
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    assert model.anchor_generator.strides == [8, 16]
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)


# ---- head


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return AutoAssignHead(input_shape=shapes, num_classes=K, **kwargs)


def test_parameter_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in head_of().named_parameters()}
    expected = {}
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in (0, 3, 6, 9):
            expected[f"{tower}.{i}.weight"] = (64, 64, 3, 3)
            for name in (f"{i}.bias", f"{i + 1}.weight", f"{i + 1}.bias"):
                expected[f"{tower}.{name}"] = (64,)
    for name, channels in (("cls_score", K), ("bbox_pred", 4), ("objectness", 1)):
        expected[f"{name}.weight"] = (channels, 64, 3, 3)
        expected[f"{name}.bias"] = (channels,)
    expected |= {f"scales.{i}.scale": (1,) for i in range(5)}
    expected |= {"center_prior.mean": (K, 2), "center_prior.sigma": (K, 2)}
    assert shapes == expected
    assert isinstance(head_of().cls_subnet[1], nn.GroupNorm)


def test_initial_values():
    torch.manual_seed(0)
    head = head_of()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(head.cls_score.bias, torch.full((K,), -math.log(49)))
    assert head.bbox_pred.bias.eq(4).all() and not head.objectness.bias.any()
    assert all(s.scale.item() == 1 for s in head.scales)
    assert head.center_prior.mean.eq(0).all() and head.center_prior.sigma.eq(1).all()


def test_distances_are_in_pixels_and_not_negative():
    head = head_of(levels=2)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    for mode in (True, False):
        _, distances, _ = head.train(mode)([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 2)])
        assert distances[0][0, :, 1, 1].tolist() == [4, 0, 16, 0]
        assert distances[1][0, :, 0, 0].tolist() == [24, 0, 96, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([torch.rand(1, 64, 2, 2)] * 2)[1][0].dtype == torch.float32


def test_objectness_is_on_the_box_tower():
    head = head_of(levels=1, num_convs=1)
    head([torch.rand(1, 64, 4, 4)])[2][0].sum().backward()
    assert head.bbox_subnet[0].weight.grad is not None and head.cls_subnet[0].weight.grad is None


@pytest.mark.parametrize("norm", ["", "BN"])
def test_other_norms(norm):
    head = head_of(channels=20, levels=2, num_convs=2, norm=norm)
    outputs = head([torch.rand(2, 20, 4, 4), torch.rand(2, 20, 2, 2)])
    assert [len(x) for x in outputs] == [2, 2, 2]
    assert isinstance(head.cls_subnet[1], CycleBatchNormList if norm else nn.ReLU)


def test_errors_name_the_keys_of_auto_assign():
    with pytest.raises(ValueError, match="MODEL.AUTOASSIGN.NORM 'GN'.*cannot divide 48 channels"):
        head_of(channels=48)
    shapes = [ShapeSpec(channels=32, stride=8), ShapeSpec(channels=64, stride=16)]
    with pytest.raises(ValueError, match=r"towers of AutoAssign.*equal channels.*\[32, 64\]"):
        AutoAssignHead(input_shape=shapes, num_classes=K)
    with pytest.raises(ValueError, match="5 levels got 1 features"):
        head_of()([torch.rand(1, 64, 4, 4)])
