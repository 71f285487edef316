"""ImageNet weights of torchvision's ResNets in Detectron2's backbone."""

import pytest
import torch
import torchvision
from torch import nn

from kd_d2.checkpoint import CheckpointError, KDCheckpointer


@pytest.fixture
def classifier(tmp_path):
    """A random ResNet-18 in a file, with norms that do something."""
    model = torchvision.models.resnet18().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    return model


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_the_backbone_computes_what_torchvision_does(
    norm, classifier, tiny_cfg, build, tmp_path, caplog
):
    cfg = tiny_cfg("FasterRCNN")
    cfg.MODEL.RESNETS.NORM = norm
    detector = build(cfg).eval()
    with caplog.at_level("INFO"):
        KDCheckpointer(detector).load(str(tmp_path / "resnet18.pth"))
    assert "torchvision's ResNet: 100 weights" in caplog.text
    x = torch.randn(1, 3, 64, 64)
    theirs = nn.Sequential(*list(classifier.children())[:8])(x)
    ours = detector.backbone.bottom_up(x)["res5"]
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_student_of_a_distiller(classifier, frozen_cfg, build, tmp_path):
    model = build(frozen_cfg("RetinaNet"))
    KDCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    first = model.student.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(first, classifier.conv1.weight)


def test_files_that_do_not_fit(tiny_cfg, build, tmp_path, classifier):
    path = str(tmp_path / "resnet.pth")
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit the ResNet of this config: 80 weights"):
        KDCheckpointer(build(tiny_cfg("FCOS"))).load(path)
    with pytest.raises(
        CheckpointError, match="holds a ResNet, and this config's model has none: set .*DEPTH"
    ):
        KDCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "resnet18.pth"))


def test_a_backbone_that_ends_early_takes_what_it_has(tiny_cfg, tmp_path, classifier):
    from detectron2.modeling import build_backbone

    cfg = tiny_cfg("FasterRCNN")
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    backbone = build_backbone(cfg)
    KDCheckpointer(backbone).load(str(tmp_path / "resnet18.pth"))
    last = backbone.res4[1].conv2.weight
    assert torch.equal(last, classifier.layer3[1].conv2.weight)
