"""Names of feature levels: what the backbone gives, and what a detector asks for."""

from detectron2.config import CfgNode

from kd_d2.config.rules import ConfigError

__all__ = ["backbone_levels", "check_levels"]

_STAGES = ["res2", "res3", "res4", "res5"]
# what the top block adds to the levels of the pyramid
_EXTRA = {
    "build_resnet_fpn_backbone": 1,
    "build_narrow_resnet_fpn_backbone": 1,
    "build_retinanet_resnet_fpn_backbone": 2,
    "build_mobilenet_v2_fpn_backbone": 1,
    "build_dense_resnet_fpn_backbone": 2,
    "build_dense_mobilenet_v2_fpn_backbone": 2,
    "build_narrow_retinanet_resnet_fpn_backbone": 2,
}
_BARE = ("build_resnet_backbone", "build_narrow_resnet_backbone", "build_mobilenet_v2_backbone")
_SWIN_PYRAMIDS = {
    "build_swin_fpn_backbone": ["p2", "p3", "p4", "p5", "p6"],
    "build_retinanet_swin_fpn_backbone": ["p3", "p4", "p5", "p6", "p7"],
}
# whose IN_FEATURES a detector reads
_NODES = {
    "ProposalNetwork": ["RPN"],
    "GeneralizedRCNN": ["RPN", "ROI_HEADS"],
    "PanopticFPN": ["RPN", "ROI_HEADS", "SEM_SEG_HEAD"],
    "SemanticSegmentor": ["SEM_SEG_HEAD"],
    "RetinaNet": ["RETINANET"],
    "FCOS": ["FCOS"],
    "ATSS": ["ATSS"],
    "GFL": ["GFL"],
    "AutoAssign": ["AUTOASSIGN"],
    "DDOD": ["DDOD"],
    "PAA": ["PAA"],
}


def check_levels(cfg: CfgNode, arch: str) -> None:
    """Check the IN_FEATURES of a config, and that each level has its anchors.

    Backbones and parts of others are not checked, nor is a Swin without a pyramid, since the yaml
    files of Swins name no detector.

    Args:
        cfg: a finished config with a known backbone.
        arch: the detector's META_ARCHITECTURE.

    Raises:
        ConfigError: a level is asked for that there is not.
    """
    name = cfg.MODEL.BACKBONE.NAME
    levels = backbone_levels(cfg)
    for node in _NODES.get(arch, []):
        if not _is_stock(cfg, node):
            continue
        asked = list(cfg.MODEL[node].IN_FEATURES)
        if levels and not set(asked) <= set(levels):
            raise ConfigError(
                f"MODEL.{node}.IN_FEATURES of a {arch} is {asked}, but {name} "
                f"(MODEL.BACKBONE.NAME) gives {', '.join(levels)}: name some of these, or begin "
                f"with a config of a {arch}."
            )
        if node in ("RPN", "RETINANET"):
            _check_anchors(cfg, node, len(asked))


def backbone_levels(cfg: CfgNode) -> list[str] | None:
    """Names of the backbone's outputs, fine to coarse; None where they are not known.

    Raises:
        ConfigError: its own levels do not fit together.
    """
    name, model = cfg.MODEL.BACKBONE.NAME, cfg.MODEL
    if name in _SWIN_PYRAMIDS:
        return _SWIN_PYRAMIDS[name]
    if name not in _BARE and name not in _EXTRA:
        return None
    outputs = list(model.RESNETS.OUT_FEATURES)
    network, has = "ResNet", ["stem", *_STAGES]
    if "mobilenet" in name:
        network, has = "MobileNetV2", _STAGES
    if not outputs or not set(outputs) <= set(has):
        raise ConfigError(
            f"MODEL.RESNETS.OUT_FEATURES is {outputs}; a {network} has {', '.join(has)}."
        )
    if name in _BARE:
        return outputs
    asked = list(model.FPN.IN_FEATURES)
    first = _STAGES.index(asked[0]) if asked and asked[0] in _STAGES else 0
    if not asked or asked != _STAGES[first : first + len(asked)] or not set(asked) <= set(outputs):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES is {asked}; it must be neighbours of {', '.join(_STAGES)} in "
            f"this order, out of MODEL.RESNETS.OUT_FEATURES, which is {outputs}."
        )
    last = first + len(asked) + 1
    return [f"p{i}" for i in range(first + 2, last + 1 + _EXTRA[name])]


def _is_stock(cfg: CfgNode, node: str) -> bool:
    """Whether the part that reads MODEL.<node> is one whose use of IN_FEATURES is known."""
    if node == "RPN":
        return cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("RPN", "RRPN")
    if node == "ROI_HEADS":
        return cfg.MODEL.ROI_HEADS.NAME in ("Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads")
    return node != "SEM_SEG_HEAD" or cfg.MODEL.SEM_SEG_HEAD.NAME == "SemSegFPNHead"


def _check_anchors(cfg: CfgNode, node: str, levels: int) -> None:
    generator = cfg.MODEL.ANCHOR_GENERATOR
    if generator.NAME not in ("DefaultAnchorGenerator", "RotatedAnchorGenerator"):
        return
    for key in ("SIZES", "ASPECT_RATIOS"):
        lists = generator[key]
        if isinstance(lists[0], list | tuple) and len(lists) not in (1, levels):
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(lists)} lists, and there are {levels} "
                f"levels in MODEL.{node}.IN_FEATURES: give one list for each, or one for all."
            )
