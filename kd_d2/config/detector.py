"""Checks of one detector's config: the student's, a plain model's or a teacher's."""

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

from kd_d2.config.levels import check_levels
from kd_d2.config.names import check_known, check_parts
from kd_d2.config.rules import ConfigError
from kd_d2.modeling.backbones import check_swin_config

__all__ = ["check_backbone", "check_detector"]

_RESNET_DEPTHS = (18, 34, 50, 101, 152)  # that Detectron2's ResNets know


def check_backbone(cfg: CfgNode) -> None:
    """Check the name of the backbone, and what its builder would stumble over.

    Args:
        cfg: a finished config.

    Raises:
        ConfigError: with one sentence on the first thing that is wrong.
    """
    name, depth = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.DEPTH
    check_known("backbone (MODEL.BACKBONE.NAME)", name, BACKBONE_REGISTRY)
    if "resnet" in name and depth not in _RESNET_DEPTHS:
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH is {depth}; it must be one of "
            f"{', '.join(map(str, _RESNET_DEPTHS))}."
        )
    if "swin" in name:
        try:
            check_swin_config(cfg)
        except ValueError as e:
            raise ConfigError(str(e)) from None


def check_detector(cfg: CfgNode, arch: str) -> None:
    """Check a detector's other parts, and that the levels it reads exist.

    Args:
        cfg: a finished config with a known backbone.
        arch: the detector's META_ARCHITECTURE.

    Raises:
        ConfigError: with one sentence on the first thing that is wrong.
    """
    check_parts(cfg, arch)
    check_levels(cfg, arch)
