"""The narrow ResNet: equal to Detectron2's at its width, narrower otherwise."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from kd_d2.modeling.backbones import add_backbone_config


def cfg_of(builder, width=32, depth=18):
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = width
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def build(cfg):
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


@pytest.mark.parametrize(
    "name", ["build_{}resnet_fpn_backbone", "build_{}retinanet_resnet_fpn_backbone"]
)
def test_at_full_width_it_is_detectron2s(name):
    stock, ours = build(cfg_of(name.format(""), 64)), build(cfg_of(name.format("narrow_"), 64))
    assert stock.state_dict().keys() == ours.state_dict().keys()
    x = torch.rand(1, 3, 64, 64)
    for key, value in stock(x).items():
        assert torch.equal(value, ours(x)[key])
    assert stock.output_shape() == ours.output_shape()


def test_width_doubles_per_stage():
    backbone = build(cfg_of("build_narrow_resnet_backbone", 8, depth=34))
    outputs = backbone(torch.rand(1, 3, 64, 64))
    assert {k: tuple(v.shape[1:]) for k, v in outputs.items()} == {
        "res3": (16, 8, 8),
        "res4": (32, 4, 4),
        "res5": (64, 2, 2),
    }
    assert len(backbone.res4) == 6


@pytest.mark.parametrize("in_feature, channels", [("res5", 256), ("p5", 16)])
def test_source_of_p6(in_feature, channels):
    cfg = cfg_of("build_narrow_retinanet_resnet_fpn_backbone")
    cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = in_feature
    backbone = build(cfg)
    assert backbone.top_block.p6.in_channels == channels
    assert backbone(torch.rand(1, 3, 128, 128))["p6"].shape == (1, 16, 2, 2)


def test_refusals():
    cfg = cfg_of("build_narrow_retinanet_resnet_fpn_backbone")
    cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = "c5"
    with pytest.raises(ValueError, match='must be "res5" or "p5"'):
        build(cfg)
    with pytest.raises(ValueError, match="DEPTH is 50.*set 18 or 34"):
        build(cfg_of("build_narrow_resnet_backbone", depth=50))
    cfg = cfg_of("build_narrow_resnet_backbone")
    cfg.MODEL.RESNETS.NUM_GROUPS = 2
    with pytest.raises(ValueError, match="no deformable, grouped or dilated"):
        build(cfg)
