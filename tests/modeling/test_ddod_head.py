"""The head of DDOD: names, initial values, and what the deformable blocks look at."""

import math

import pytest
import torch
from detectron2.layers import CycleBatchNormList, ShapeSpec
from fcos_cases import K
from torch import nn
from torch.nn import functional as F

from kd_d2.modeling.detectors.atss_head import ATSSHead
from kd_d2.modeling.detectors.ddod_head import DDODHead, SelfDeformedConv


def head_of(channels=64, levels=5, kind=DDODHead, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return kind(input_shape=shapes, num_classes=K, **kwargs)


def test_parameter_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in head_of().named_parameters()}
    expected = {name: tuple(p.shape) for name, p in head_of(kind=ATSSHead).named_parameters()}
    for tower in ("cls_subnet", "bbox_subnet"):
        expected[f"{tower}.0.conv_offset.weight"] = (18, 64, 3, 3)
        expected[f"{tower}.0.conv_offset.bias"] = (18,)
    assert shapes == expected


def test_initial_values():
    torch.manual_seed(0)
    head = head_of()
    for name, parameter in head.named_parameters():
        if "conv_offset" in name:
            assert not parameter.any()
        elif parameter.dim() == 4:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.2), name
    torch.testing.assert_close(head.cls_score.bias, torch.full((K,), -math.log(99)))


def test_begins_as_the_head_of_atss():
    head, plain = head_of(levels=2), head_of(levels=2, kind=ATSSHead)
    plain.load_state_dict(
        {name: value for name, value in head.state_dict().items() if "conv_offset" not in name}
    )
    features = [torch.rand(2, 64, 6, 5), torch.rand(2, 64, 3, 3)]
    for mine, theirs in zip(sum(head(features), []), sum(plain(features), []), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_offsets_move_what_is_seen():
    """One cell up and two to the left, from everywhere: the input moved down and to the right."""
    conv = SelfDeformedConv(4, bias=True)
    conv.conv_offset.bias.data = torch.tensor([-1.0, -2.0] * 9)
    nn.init.constant_(conv.bias, 0.5)
    x = torch.rand(1, 4, 7, 8)
    moved = F.pad(x, (3, 1, 2, 1))[:, :, :8]  # zeros around it, as padded
    expected = F.conv2d(moved, conv.weight, conv.bias)[:, :, :7, :8]
    torch.testing.assert_close(conv(x)[:, :, :6, :7], expected[:, :, :6, :7])


def test_offsets_are_learned_from_the_features():
    head = head_of(levels=1, num_convs=1)
    outputs = head([torch.rand(1, 64, 4, 4)])
    sum(x[0].square().sum() for x in outputs).backward()
    for tower in (head.cls_subnet, head.bbox_subnet):
        gradient = tower[0].conv_offset.weight.grad
        assert gradient.any() and gradient.isfinite().all()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("norm", ["", "BN"])
def test_other_norms(norm):
    head = head_of(channels=20, levels=2, num_convs=2, norm=norm)
    outputs = head([torch.rand(2, 20, 4, 4), torch.rand(2, 20, 2, 2)])
    assert [len(x) for x in outputs] == [2, 2, 2]
    assert (head.cls_subnet[0].bias is None) == bool(norm)
    assert isinstance(head.cls_subnet[1], CycleBatchNormList if norm else nn.ReLU)


def test_under_autocast():
    head = head_of(levels=1, num_convs=1)
    feature = torch.rand(1, 64, 4, 4)
    plain = head([feature])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lean = head([feature])
    assert lean[1][0].dtype == torch.float32  # scaled deltas
    for a, b in zip(plain, lean, strict=True):
        torch.testing.assert_close(b[0].float(), a[0], rtol=0.05, atol=0.05)


def test_errors_name_the_keys_of_ddod():
    with pytest.raises(ValueError, match="MODEL.DDOD.NORM 'GN'.*cannot divide 48 channels"):
        head_of(channels=48)
    with pytest.raises(ValueError, match="MODEL.DDOD.NUM_CONVS is 0"):
        head_of(num_convs=0)
    with pytest.raises(ValueError, match="DDOD head of 5 levels got 1 features"):
        head_of()([torch.rand(1, 64, 4, 4)])
