"""Deformable convolutions against nested loops, and Detectron2's DCN blocks made of them."""

import math

import detectron2.layers
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock
from torch.nn import functional as F

from kd_d2.modeling.backbones import DeformConv, ModulatedDeformConv, install_deform_conv


def sample(plane, y, x):
    """Bilinear value of an (H, W) tensor at (y, x), zero outside."""
    height, width = plane.shape
    value = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < height and 0 <= j < width:
                value += (1 - abs(y - i)) * (1 - abs(x - j)) * plane[i, j].item()
    return value


def slow_deform_conv(conv, x, offset, mask):
    kernel_h, kernel_w = conv.kernel_size
    (stride, _), (padding, _), (dilation, _) = conv.stride, conv.padding, conv.dilation
    batch, _, height, width = offset.shape
    out = torch.zeros(batch, conv.out_channels, height, width, dtype=x.dtype)
    in_per_group = conv.in_channels // conv.groups
    out_per_group = conv.out_channels // conv.groups
    channels_per_deform = conv.in_channels // conv.deformable_groups
    points = kernel_h * kernel_w
    for n in range(batch):
        for o in range(conv.out_channels):
            for i in range(height):
                for j in range(width):
                    total = conv.bias[o].item() if conv.bias is not None else 0.0
                    for c in range(in_per_group):
                        channel = o // out_per_group * in_per_group + c
                        group = channel // channels_per_deform
                        for p in range(points):
                            at = group * points + p
                            y = i * stride - padding + p // kernel_w * dilation
                            x_ = j * stride - padding + p % kernel_w * dilation
                            y += offset[n, 2 * at, i, j].item()
                            x_ += offset[n, 2 * at + 1, i, j].item()
                            weight = conv.weight[o, c, p // kernel_w, p % kernel_w].item()
                            weight *= mask[n, at, i, j].item() if mask is not None else 1.0
                            total += weight * sample(x[n, channel], y, x_)
                    out[n, o, i, j] = total
    return out


@pytest.mark.parametrize(
    "groups, deformable_groups, stride, dilation, bias",
    [(1, 1, 1, 1, False), (2, 1, 2, 1, False), (4, 2, 1, 2, True)],
)
@pytest.mark.parametrize("modulated", [True, False])
def test_equals_loops(groups, deformable_groups, stride, dilation, bias, modulated):
    torch.manual_seed(0)
    kind = ModulatedDeformConv if modulated else DeformConv
    conv = kind(
        4,
        8,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        deformable_groups=deformable_groups,
        bias=bias,
    ).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    size = (2, -1, (5 - 1) // stride + 1, (6 - 1) // stride + 1)
    numbers = torch.randn(2 * 27 * deformable_groups * size[2] * size[3], dtype=torch.float64)
    offset, mask = numbers.view(size).split([18 * deformable_groups, 9 * deformable_groups], dim=1)
    args = (x, offset, mask.sigmoid()) if modulated else (x, offset)
    expected = slow_deform_conv(conv, x, offset, mask.sigmoid() if modulated else None)
    torch.testing.assert_close(conv(*args), expected)


def test_without_offsets_it_is_a_convolution():
    torch.manual_seed(0)
    conv = ModulatedDeformConv(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(1, 4, 7, 7)
    out = conv(x, torch.zeros(1, 18, 4, 4), torch.ones(1, 9, 4, 4))
    expected = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(out, expected)


def test_gradients():
    torch.manual_seed(0)
    conv = ModulatedDeformConv(2, 2, 3, padding=1, groups=2).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    # away from whole cells, where bilinear interpolation has a kink
    offset = (torch.rand(1, 18, 3, 3, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    mask = torch.rand(1, 9, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x, offset, mask, weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x, offset, mask))

    weight = conv.weight.detach().clone().requires_grad_()
    torch.autograd.gradcheck(run, (x, offset, mask, weight))


def test_empty_batch():
    conv = ModulatedDeformConv(4, 6, 3, stride=2, padding=1)
    out = conv(torch.zeros(0, 4, 8, 10), torch.zeros(0, 18, 4, 5), torch.zeros(0, 9, 4, 5))
    assert out.shape == (0, 6, 4, 5)
    out.sum().backward()


def test_half_precision_samples_in_float32():
    torch.manual_seed(0)
    conv = ModulatedDeformConv(4, 6, 3, padding=1)
    x, offset = torch.randn(1, 4, 6, 6).bfloat16(), torch.randn(1, 18, 6, 6).bfloat16()
    mask = torch.rand(1, 9, 6, 6).bfloat16()
    expected = conv(x.float(), offset.float(), mask.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x, offset, mask)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())


def test_wrong_channels():
    conv = ModulatedDeformConv(4, 6, 3)
    with pytest.raises(ValueError, match="18 channels of offsets and 9 of masks, got 9 and 9"):
        conv(torch.zeros(1, 4, 6, 6), torch.zeros(1, 9, 4, 4), torch.zeros(1, 9, 4, 4))
    with pytest.raises(ValueError, match="in_channels = 5 cannot be divided into 2"):
        ModulatedDeformConv(5, 6, 3, groups=2)


# ---- in Detectron2


def dcn_backbone(modulated=True, groups=1, stages=(False, True, True, True)):
    """A ResNet-50 of a few channels, with stock keys and the stock builder."""
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.OUT_FEATURES = 50, ["res3", "res4", "res5"]
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 8, 16
    resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1 = groups, 2, groups == 1
    resnets.DEFORM_ON_PER_STAGE, resnets.DEFORM_MODULATED = list(stages), modulated
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_installed_where_detectron2_looks():
    from detectron2.modeling.backbone import resnet

    assert resnet.ModulatedDeformConv is ModulatedDeformConv
    assert detectron2.layers.DeformConv is DeformConv
    install_deform_conv()  # a second time changes nothing
    assert detectron2.layers.ModulatedDeformConv is ModulatedDeformConv


@pytest.mark.parametrize("groups", [1, 4])
def test_blocks_have_the_stock_names(groups):
    backbone = dcn_backbone(groups=groups)
    for stage, blocks in zip(("res2", "res3", "res4", "res5"), (3, 4, 6, 3), strict=True):
        modules = list(getattr(backbone.bottom_up, stage))
        assert len(modules) == blocks
        assert all(isinstance(m, DeformBottleneckBlock) == (stage != "res2") for m in modules)
    width = 2 * groups * 2  # bottleneck of res3
    shapes = {k: tuple(v.shape) for k, v in backbone.bottom_up.res3[1].state_dict().items()}
    norm = {"weight", "bias", "running_mean", "running_var"}
    expected = {f"conv{i}.norm.{n}" for i in (1, 2, 3) for n in norm}
    expected |= {"conv1.weight", "conv2.weight", "conv3.weight"}
    expected |= {"conv2_offset.weight", "conv2_offset.bias"}
    assert shapes.keys() == expected
    assert shapes["conv2.weight"] == (width, width // groups, 3, 3)
    assert shapes["conv2_offset.weight"] == (27, width, 3, 3)
    assert isinstance(backbone.bottom_up.res3[1].conv2.norm, FrozenBatchNorm2d)


def test_a_new_block_is_half_a_convolution():
    """Zero offsets, mask sigmoid(0): the 3x3 convolution at half strength."""
    block = dcn_backbone().bottom_up.res3[1]
    assert not block.conv2_offset.weight.any() and not block.conv2_offset.bias.any()
    x = torch.randn(1, 32, 6, 6)
    hidden = F.relu(block.conv1(x))
    hidden = F.relu(block.conv2.norm(0.5 * F.conv2d(hidden, block.conv2.weight, padding=1)))
    torch.testing.assert_close(block(x.clone()), F.relu(block.conv3(hidden) + x))


@pytest.mark.parametrize("modulated, groups", [(True, 1), (True, 4), (False, 1)])
def test_a_training_step(modulated, groups):
    backbone = dcn_backbone(modulated, groups)
    features = backbone(torch.randn(1, 3, 64, 64))
    assert [features[f"p{i}"].shape[-1] for i in range(3, 8)] == [8, 4, 2, 1, 1]
    sum(f.square().sum() for f in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name
    assert backbone.bottom_up.res4[0].conv2_offset.weight.grad.any()
    assert backbone.bottom_up.res5[2].conv2.weight.grad.any()
