"""MobileNetV2: torchvision's network, its weights, what is frozen, and the pyramids on it."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models import mobilenet_v2

from kd_d2 import get_kd_cfg
from kd_d2.checkpoint import CheckpointError, KDCheckpointer
from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.modeling.backbones import MobileNetV2

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STAGES = ["res2", "res3", "res4", "res5"]
BARE, RCNN, DENSE = (
    "build_mobilenet_v2_backbone",
    "build_mobilenet_v2_fpn_backbone",
    "build_dense_mobilenet_v2_fpn_backbone",
)


def cfg_of(name, **resnets):
    cfg = get_kd_cfg()
    cfg.merge_from_file(str(CONFIGS / "backbones/MobileNetV2.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = STAGES
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def build(cfg):
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_it_is_torchvisions():
    backbone, classifier = MobileNetV2().eval(), mobilenet_v2().eval()
    backbone.features.load_state_dict(classifier.features.state_dict())
    x = torch.rand(2, 3, 64, 96)
    outputs = backbone(x)
    assert torch.equal(outputs["res5"], classifier.features(x))
    for name, end in zip(STAGES, (3, 6, 13, 18), strict=True):
        assert torch.equal(outputs[name], classifier.features[: end + 1](x))
        shape = backbone.output_shape()[name]
        assert outputs[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_it_ends_with_the_last_output():
    backbone = MobileNetV2(out_features=["res4", "res2"])
    assert list(backbone.output_shape()) == ["res2", "res4"] and len(backbone.features) == 14
    outputs = backbone(torch.rand(1, 3, 32, 32))
    sum(x.sum() for x in outputs.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("freeze_at, blocks", [(-1, 0), (0, 0), (1, 1), (2, 4), (5, 19), (9, 19)])
def test_what_is_frozen(freeze_at, blocks):
    backbone = MobileNetV2(freeze_at=freeze_at)
    frozen = [not any(p.requires_grad for p in block.parameters()) for block in backbone.features]
    assert frozen == [i < blocks for i in range(19)]
    for i, block in enumerate(backbone.features):
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms and all(isinstance(m, FrozenBatchNorm2d) == (i < blocks) for m in norms)


@pytest.mark.parametrize("norm, kind", [("BN", nn.BatchNorm2d), ("FrozenBN", FrozenBatchNorm2d)])
def test_norm(norm, kind):
    modules = list(build(cfg_of(BARE, NORM=norm)).modules())
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert len(norms) == sum(isinstance(m, nn.Conv2d) for m in modules)
    assert all(type(m) is kind for m in norms)


def test_pyramids():
    levels = build(cfg_of(RCNN))(torch.rand(1, 3, 64, 64))
    assert {k: x.shape[-1] for k, x in levels.items()} == {
        f"p{i}": 2 ** (6 - i) for i in range(2, 7)
    }
    cfg = cfg_of(DENSE)
    cfg.MODEL.FPN.IN_FEATURES = STAGES[1:]
    backbone = build(cfg)
    assert list(backbone(torch.rand(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6", "p7"]
    inputs = [getattr(backbone, f"fpn_lateral{i}").in_channels for i in (3, 4, 5)]
    assert inputs == [32, 96, 1280] and backbone.top_block.p6.in_channels == 1280


def detector(tiny_cfg, **settings):
    cfg = tiny_cfg("ATSS")
    cfg.MODEL.BACKBONE.NAME = DENSE
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    for key, value in settings.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_weights_of_torchvision(tiny_cfg, build, norm, tmp_path, caplog):
    classifier = mobilenet_v2()
    nn.init.constant_(classifier.features[0][1].running_mean, 0.25)
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    model = build(detector(tiny_cfg, NORM=norm))
    with caplog.at_level("INFO"):
        KDCheckpointer(model).load(str(tmp_path / "mobilenet.pth"))
    assert "torchvision's MobileNetV2" in caplog.text and "dropped the classifier" in caplog.text
    own = model.backbone.bottom_up.features.state_dict()
    for name, value in classifier.features.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(own[name], value)


def test_weights_for_the_student_of_a_distiller(tiny_cfg, lgd_cfg, build, tmp_path):
    torch.save(mobilenet_v2().state_dict(), tmp_path / "mobilenet.pth")
    cfg = lgd_cfg("ATSS")
    cfg.MODEL.BACKBONE.NAME = DENSE
    model = build(cfg)
    KDCheckpointer(model).load(str(tmp_path / "mobilenet.pth"))
    weights = torch.load(tmp_path / "mobilenet.pth")
    last = model.student.backbone.bottom_up.features[18][0].weight
    assert torch.equal(last, weights["features.18.0.weight"])


def test_weights_of_another_model(tiny_cfg, build, tmp_path):
    path = str(tmp_path / "mobilenet.pth")
    torch.save(mobilenet_v2(width_mult=0.5).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit the MobileNetV2 of this config"):
        KDCheckpointer(build(detector(tiny_cfg))).load(path)
    with pytest.raises(CheckpointError, match="holds a MobileNetV2, and this config's model has"):
        KDCheckpointer(build(tiny_cfg("ATSS"))).load(path)


def test_a_step_trains_all_of_it(tiny_cfg, build, random_batch, storage):
    cfg = detector(tiny_cfg, NORM="BN")
    check_config(cfg)
    model = build(cfg)
    sum(model(random_batch()).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    norm = model.backbone.bottom_up.features[0][1]
    assert norm.num_batches_tracked == 1  # its statistics are those of the data


def test_mistakes(tiny_cfg):
    with pytest.raises(ConfigError, match="a MobileNetV2 has res2, res3, res4, res5"):
        check_config(detector(tiny_cfg, OUT_FEATURES=["stem", "res3", "res4", "res5"]))
    with pytest.raises(ValueError, match="a MobileNetV2 has res2"):
        MobileNetV2(out_features=["res6"])
    cfg = cfg_of(BARE)
    with pytest.raises(ValueError, match="reads 3 channels"):
        build_backbone(cfg, ShapeSpec(channels=1))
