"""The pyramid of the dense detectors in its variants."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config


def pyramid(builder="build_dense_resnet_fpn_backbone", **fpn):
    cfg = get_kd_cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    for key, value in fpn.items():
        cfg.MODEL.FPN[key] = value
    torch.manual_seed(0)
    return build_backbone(cfg).eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))


def test_the_default_is_detectron2s(image):
    ours, stock = pyramid(), pyramid("build_retinanet_resnet_fpn_backbone")
    assert [*ours.state_dict()] == [*stock.state_dict()]
    for name, feature in ours(image).items():
        assert torch.equal(feature, stock(image)[name])


@pytest.mark.parametrize("source,channels", [("res5", 512), ("p5", 32)])
@pytest.mark.parametrize("relu", [True, False])
def test_top_levels(source, channels, relu, image):
    model = pyramid(TOP_BLOCK_IN_FEATURE=source, TOP_BLOCK_RELU=relu)
    p6, p7 = model.top_block.p6, model.top_block.p7
    assert p6.weight.shape[1] == channels
    features = model(image)
    below = model.bottom_up(image)["res5"] if source == "res5" else features["p5"]
    expected = p6(below)
    torch.testing.assert_close(features["p6"], expected)
    torch.testing.assert_close(features["p7"], p7(F.relu(expected) if relu else expected))


def test_xavier_draws_by_both_fans():
    caffe2, xavier = (
        pyramid(INIT=init).fpn_lateral5.weight.abs().max().item() for init in ("caffe2", "xavier")
    )
    assert caffe2 == pytest.approx((3 / 512) ** 0.5, rel=0.01)
    assert xavier == pytest.approx((6 / (512 + 32)) ** 0.5, rel=0.01)
    assert torch.equal(
        pyramid(INIT="xavier").bottom_up.stem.conv1.weight, pyramid().bottom_up.stem.conv1.weight
    )


@pytest.mark.parametrize(
    "key,value", [("TOP_BLOCK_IN_FEATURE", "c5"), ("TOP_BLOCK_RELU", 1), ("INIT", "msra")]
)
def test_wrong_values_are_named(key, value, tiny_cfg):
    cfg = tiny_cfg("ATSS")
    cfg.MODEL.FPN[key] = value
    with pytest.raises(ValueError, match=f"MODEL.FPN.{key} is {value!r}; it must be"):
        check_config(cfg)
