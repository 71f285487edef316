"""Backbones that Detectron2 lacks; importing this registers them and lets DCN run anywhere."""

from kd_d2.modeling.backbones.deform_conv import (
    DeformConv,
    ModulatedDeformConv,
    install_deform_conv,
)
from kd_d2.modeling.backbones.narrow_resnet import (
    add_backbone_config,
    build_narrow_resnet_backbone,
    build_narrow_resnet_fpn_backbone,
    build_narrow_retinanet_resnet_fpn_backbone,
)

install_deform_conv()

__all__ = [
    "DeformConv",
    "ModulatedDeformConv",
    "add_backbone_config",
    "build_narrow_resnet_backbone",
    "build_narrow_resnet_fpn_backbone",
    "build_narrow_retinanet_resnet_fpn_backbone",
    "install_deform_conv",
]
