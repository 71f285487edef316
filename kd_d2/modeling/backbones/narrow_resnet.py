"""ResNet-18/34 of any width, for experiments on small images.

Detectron2's ``build_resnet_backbone`` insists on 64 channels in res2 for these depths. The
builders here read the same keys and build the same modules, so parameter names are those of
Detectron2; they take ``MODEL.RESNETS.STEM_OUT_CHANNELS`` and ``RES2_OUT_CHANNELS`` as they are
(each later stage doubles the width). With 64 and 64 the result is Detectron2's own network.
"""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem

from kd_d2.modeling.backbones.dense_fpn import dense_fpn
from kd_d2.modeling.backbones.rcnn_fpn import rcnn_fpn

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet without a feature pyramid.

    Raises:
        ValueError: the depth has no basic blocks, or a key asks for what basic blocks cannot do.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in _BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}, but the narrow ResNet has basic blocks: "
            "set 18 or 34, or use Detectron2's build_resnet_backbone."
        )
    if any(resnets.DEFORM_ON_PER_STAGE) or resnets.NUM_GROUPS != 1 or resnets.RES5_DILATION != 1:
        raise ValueError(
            "The narrow ResNet has no deformable, grouped or dilated blocks: leave "
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE, NUM_GROUPS and RES5_DILATION at their defaults."
        )
    stem = BasicStem(
        in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=resnets.NORM
    )
    stages, in_channels, out_channels = [], resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    for index, num_blocks in enumerate(_BLOCKS_PER_STAGE[resnets.DEPTH]):
        first_stride = 1 if index == 0 else 2
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=resnets.NORM,
            )
        )
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(
        stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
def build_narrow_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The pyramid of the R-CNNs, see :func:`rcnn_fpn`."""
    return rcnn_fpn(cfg, build_narrow_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_narrow_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The pyramid of the dense detectors, see :func:`dense_fpn`.

    Raises:
        ValueError: for another ``MODEL.FPN.TOP_BLOCK_IN_FEATURE``.
    """
    return dense_fpn(cfg, build_narrow_resnet_backbone(cfg, input_shape))
