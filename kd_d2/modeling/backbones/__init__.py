"""Backbones that Detectron2 lacks; importing this registers them and lets DCN run anywhere."""

from kd_d2.modeling.backbones.config import add_backbone_config
from kd_d2.modeling.backbones.deform_conv import (
    DeformConv,
    ModulatedDeformConv,
    install_deform_conv,
)
from kd_d2.modeling.backbones.dense_fpn import (
    LinearLastLevelP6P7,
    build_dense_resnet_fpn_backbone,
    dense_fpn,
)
from kd_d2.modeling.backbones.mobilenet_v2 import (
    MobileNetV2,
    build_dense_mobilenet_v2_fpn_backbone,
    build_mobilenet_v2_backbone,
    build_mobilenet_v2_fpn_backbone,
)
from kd_d2.modeling.backbones.narrow_resnet import (
    build_narrow_resnet_backbone,
    build_narrow_resnet_fpn_backbone,
    build_narrow_retinanet_resnet_fpn_backbone,
)
from kd_d2.modeling.backbones.swin import (
    Swin,
    build_retinanet_swin_fpn_backbone,
    build_swin_backbone,
    build_swin_fpn_backbone,
    check_swin_config,
)

install_deform_conv()

__all__ = [
    "DeformConv",
    "LinearLastLevelP6P7",
    "MobileNetV2",
    "ModulatedDeformConv",
    "Swin",
    "add_backbone_config",
    "build_dense_mobilenet_v2_fpn_backbone",
    "build_dense_resnet_fpn_backbone",
    "build_mobilenet_v2_backbone",
    "build_mobilenet_v2_fpn_backbone",
    "build_narrow_resnet_backbone",
    "build_narrow_resnet_fpn_backbone",
    "build_narrow_retinanet_resnet_fpn_backbone",
    "build_retinanet_swin_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "check_swin_config",
    "dense_fpn",
    "install_deform_conv",
]
