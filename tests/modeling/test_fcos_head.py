"""The head of FCOS: names, initial values, outputs, norms."""

import math

import pytest
import torch
from detectron2.layers import CycleBatchNormList, ShapeSpec
from fcos_cases import K
from torch import nn

from kd_d2.modeling.detectors import FCOSHead


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return FCOSHead(input_shape=shapes, num_classes=K, **kwargs)


def test_parameter_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in head_of().named_parameters()}
    expected = {}
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in (0, 3, 6, 9):
            expected[f"{tower}.{i}.weight"] = (64, 64, 3, 3)
            expected[f"{tower}.{i}.bias"] = (64,)
            expected[f"{tower}.{i + 1}.weight"] = (64,)
            expected[f"{tower}.{i + 1}.bias"] = (64,)
    for name, channels in (("cls_score", K), ("bbox_pred", 4), ("centerness", 1)):
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
    assert not head.bbox_pred.bias.any() and not head.centerness.bias.any()
    assert all(s.scale.item() == 1 for s in head.scales)


@pytest.mark.parametrize("norm_reg_targets", [True, False])
def test_box_output(norm_reg_targets):
    head = head_of(levels=2, norm_reg_targets=norm_reg_targets)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    _, distances, _ = head([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 1)])
    if norm_reg_targets:
        assert distances[0][0, :, 0, 0].tolist() == [4, 0, 16, 0]
        assert distances[1][0, :, 0, 0].tolist() == [24, 0, 96, 0]
    else:
        expected = (3 * head.bbox_pred.bias).exp()
        torch.testing.assert_close(distances[1][0, :, 0, 0], expected)


@pytest.mark.parametrize("on_reg", [True, False])
def test_centerness_tower(on_reg):
    head = head_of(levels=1, num_convs=1, centerness_on_reg=on_reg)
    _, _, centerness = head([torch.rand(1, 64, 4, 4)])
    centerness[0].sum().backward()
    assert (head.bbox_subnet[0].weight.grad is not None) == on_reg
    assert (head.cls_subnet[0].weight.grad is not None) == (not on_reg)


@pytest.mark.parametrize("norm", ["", "BN", "LN"])
def test_other_norms(norm):
    head = head_of(channels=20, levels=2, num_convs=2, norm=norm)
    outputs = head([torch.rand(2, 20, 4, 4), torch.rand(2, 20, 2, 2)])
    assert [len(x) for x in outputs] == [2, 2, 2]
    if norm == "BN":
        assert isinstance(head.cls_subnet[1], CycleBatchNormList)
        assert len(head.cls_subnet[1]) == 2
        assert head.cls_subnet[1].weight.requires_grad
    if not norm:
        assert [type(m).__name__ for m in head.cls_subnet] == ["Conv2d", "ReLU"] * 2


def test_group_norm_needs_divisible_channels():
    with pytest.raises(ValueError, match="cannot divide 48 channels.*FPN.OUT_CHANNELS"):
        head_of(channels=48)


def test_levels_must_be_equally_wide():
    shapes = [ShapeSpec(channels=32, stride=8), ShapeSpec(channels=64, stride=16)]
    with pytest.raises(ValueError, match=r"equal channels.*\[32, 64\]"):
        FCOSHead(input_shape=shapes, num_classes=K)
