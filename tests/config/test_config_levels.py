"""Levels that a detector asks for, against those that its backbone really gives."""

import pytest
import torch
from detectron2.modeling import build_backbone

from kd_d2.config.check import check_config
from kd_d2.config.levels import backbone_levels
from kd_d2.config.rules import ConfigError

STAGES = ["res2", "res3", "res4", "res5"]


@pytest.mark.parametrize(
    "name, stages",
    [
        *((f"build_{narrow}resnet_backbone", ["stem", "res3"]) for narrow in ("", "narrow_")),
        *((f"build_{narrow}resnet_fpn_backbone", STAGES) for narrow in ("", "narrow_")),
        ("build_resnet_fpn_backbone", STAGES[2:]),
        ("build_resnet_fpn_backbone", STAGES[:2]),
        ("build_retinanet_resnet_fpn_backbone", STAGES[1:]),
        ("build_narrow_retinanet_resnet_fpn_backbone", STAGES),
        ("build_swin_fpn_backbone", STAGES),
        ("build_retinanet_swin_fpn_backbone", STAGES),
    ],
)
def test_levels_are_those_of_the_built_backbone(name, stages, tiny_cfg):
    cfg = tiny_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = name, stages
    cfg.MODEL.FPN.IN_FEATURES = stages
    with torch.device("meta"):
        assert backbone_levels(cfg) == list(build_backbone(cfg).output_shape())


MISTAKES = [
    ("RetinaNet", "GeneralizedRCNN", {}, r"RPN.IN_FEATURES of a GeneralizedRCNN is \['res4'\].*p7"),
    ("RetinaNet", "ProposalNetwork", {}, "RPN.IN_FEATURES"),
    ("RetinaNet", "PanopticFPN", {}, "RPN.IN_FEATURES"),
    ("FasterRCNN", "RetinaNet", {}, "RETINANET.IN_FEATURES of a RetinaNet .* p2, p3, p4, p5, p6:"),
    ("FasterRCNN", "FCOS", {}, "FCOS.IN_FEATURES"),
    ("ATSS", "ATSS", {"ATSS": ["p3", "p8"]}, "ATSS.IN_FEATURES .*'p8'"),
    ("RetinaNet", "RetinaNet", {"FPN": ["res9"]}, "FPN.IN_FEATURES is .*neighbours of res2, res3"),
    ("RetinaNet", "RetinaNet", {"FPN": ["res3", "res5"]}, "FPN.IN_FEATURES"),
    ("RetinaNet", "RetinaNet", {"FPN": STAGES}, r"out of .*OUT_FEATURES, which is \['res3'"),
    ("RetinaNet", "RetinaNet", {"FPN": []}, "FPN.IN_FEATURES"),
    ("RetinaNet", "RetinaNet", {"RETINANET": ["p3"]}, "SIZES has 5 lists, and there are 1 levels"),
    ("FasterRCNN", "GeneralizedRCNN", {"RPN": ["p2"]}, "SIZES has 5 lists"),
    ("FasterRCNN", "GeneralizedRCNN", {"ROI_HEADS": ["p2", "p9"]}, "ROI_HEADS.IN_FEATURES"),
]


@pytest.mark.parametrize("config, arch, levels, message", MISTAKES)
def test_levels_that_there_are_not(config, arch, levels, message, tiny_cfg):
    cfg = tiny_cfg(config)
    check_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = arch
    for node, names in levels.items():
        cfg.MODEL[node].IN_FEATURES = names
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


def test_stages_that_a_resnet_has_not(tiny_cfg):
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res6"]
    with pytest.raises(ConfigError, match="RESNETS.OUT_FEATURES is .*a ResNet has stem, res2"):
        check_config(cfg)


def test_parts_of_others_may_name_what_they_like(tiny_cfg):
    cfg = tiny_cfg("FasterRCNN")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.MODEL.RPN.IN_FEATURES = ["x"]
    check_config(cfg)


PARTS = [
    ("PROPOSAL_GENERATOR", "RPM", "'RPN'"),
    ("ROI_HEADS", "StandardROIHead", "'StandardROIHeads'"),
    ("ROI_BOX_HEAD", "FastRCNNConvFC", "'FastRCNNConvFCHead'"),
    ("ROI_MASK_HEAD", "MaskRCNNConvUpsample", "'MaskRCNNConvUpsampleHead'"),
]


@pytest.mark.parametrize("node, name, near", PARTS)
def test_parts_that_nobody_knows(node, name, near, tiny_cfg):
    cfg = tiny_cfg("MaskRCNN")
    check_config(cfg)
    cfg.MODEL[node].NAME = name
    with pytest.raises(ConfigError, match=f"MODEL.{node}.NAME. '{name}': did you mean {near}"):
        check_config(cfg)
    dense = tiny_cfg("FCOS")  # which has none of these parts
    dense.MODEL[node].NAME = name
    check_config(dense)
