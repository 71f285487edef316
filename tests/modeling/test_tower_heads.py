"""What the heads of FCOS, ATSS, GFL, AutoAssign and PAA have in common; DDOD's is ATSS's."""

import math

import pytest
import torch
from detectron2.layers import CycleBatchNormList, ShapeSpec
from fcos_cases import K
from torch import nn

from kd_d2.modeling.detectors import ATSSHead, AutoAssignHead, FCOSHead, GFLHead, PAAHead

# head -> outputs besides cls_score and what else it has; class probability at the start
HEADS = {
    FCOSHead: ({"bbox_pred": 4, "centerness": 1}, 0.01),
    ATSSHead: ({"bbox_pred": 4, "quality": 1}, 0.01),
    GFLHead: ({"bbox_pred": 4 * 17}, 0.01),
    AutoAssignHead: ({"bbox_pred": 4, "objectness": 1}, 0.02),
    PAAHead: ({"bbox_pred": 4, "iou": 1}, 0.01),
}
BIASED = (FCOSHead, AutoAssignHead)  # convolutions have biases though a norm follows
all_heads = pytest.mark.parametrize("head", HEADS)


def build(head, channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return head(input_shape=shapes, num_classes=K, **kwargs)


def features(channels=64, n=1):
    return [torch.rand(n, channels, 4, 4), torch.rand(n, channels, 2, 2)]


@all_heads
def test_parameter_names_and_shapes(head):
    shapes = {name: tuple(p.shape) for name, p in build(head).named_parameters()}
    expected = {}
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in (0, 3, 6, 9):
            expected[f"{tower}.{i}.weight"] = (64, 64, 3, 3)
            expected[f"{tower}.{i + 1}.weight"] = expected[f"{tower}.{i + 1}.bias"] = (64,)
            if head in BIASED:
                expected[f"{tower}.{i}.bias"] = (64,)
    for name, channels in {"cls_score": K, **HEADS[head][0]}.items():
        expected[f"{name}.weight"], expected[f"{name}.bias"] = (channels, 64, 3, 3), (channels,)
    expected |= {f"scales.{i}.scale": (1,) for i in range(5)}
    if head is AutoAssignHead:
        expected |= {"center_prior.mean": (K, 2), "center_prior.sigma": (K, 2)}
    assert shapes == expected
    assert isinstance(build(head).cls_subnet[1], nn.GroupNorm)


@all_heads
def test_initial_values(head):
    torch.manual_seed(0)
    outputs, prior = HEADS[head]
    head = build(head)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
    logit = math.log(prior / (1 - prior))
    torch.testing.assert_close(head.cls_score.bias, torch.full((K,), logit))
    first = 4.0 if isinstance(head, AutoAssignHead) else 0.0
    assert head.bbox_pred.bias.eq(first).all()
    assert not any(head.get_submodule(name).bias.any() for name in outputs if name != "bbox_pred")
    assert all(s.scale.item() == 1 for s in head.scales)
    if isinstance(head, AutoAssignHead):
        assert head.center_prior.mean.eq(0).all() and head.center_prior.sigma.eq(1).all()


@all_heads
def test_the_third_output_is_on_the_box_tower(head):
    built = build(head, levels=1, num_convs=1)
    outputs = built(features()[:1])
    assert [x[0].shape[1] for x in outputs] == [K, *HEADS[head][0].values()]
    outputs[-1][0].sum().backward()
    assert built.bbox_subnet[0].weight.grad is not None
    assert built.cls_subnet[0].weight.grad is None


@all_heads
def test_boxes_are_float32_under_autocast(head):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build(head, levels=2)(features())[1][0].dtype == torch.float32


@all_heads
@pytest.mark.parametrize("norm", ["", "BN", "LN"])
def test_other_norms(head, norm):
    built = build(head, channels=20, levels=2, num_convs=2, norm=norm)
    outputs = built(features(20, n=2))
    assert [len(x) for x in outputs] == [2] * (1 + len(HEADS[head][0]))
    assert (built.cls_subnet[0].bias is None) == (bool(norm) and head not in BIASED)
    if norm == "BN":
        assert isinstance(built.cls_subnet[1], CycleBatchNormList)
        assert len(built.cls_subnet[1]) == 2
    if not norm:
        assert [type(m).__name__ for m in built.cls_subnet] == ["Conv2d", "ReLU"] * 2


@all_heads
def test_mistakes_are_told_with_the_detectors_keys(head):
    key = f"MODEL.{head.arch.upper()}.NORM"
    with pytest.raises(ValueError, match=f"{key} 'GN'.*cannot divide 48.*FPN.OUT_CHANNELS"):
        build(head, channels=48)
    shapes = [ShapeSpec(channels=32, stride=8), ShapeSpec(channels=64, stride=16)]
    with pytest.raises(ValueError, match=rf"towers of {head.arch}.*equal channels.*\[32, 64\]"):
        head(input_shape=shapes, num_classes=K)
    with pytest.raises(ValueError, match=f"{head.arch} head of 5 levels got 1 features"):
        build(head)(features()[:1])
