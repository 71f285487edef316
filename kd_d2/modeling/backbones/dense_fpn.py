"""The pyramid of the dense detectors, P3 to P7, in the variants that their papers have.

Detectron2's ``build_retinanet_resnet_fpn_backbone`` knows one of them: P6 from res5, a ReLU before
P7. Parameter names are the same here.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn


class LinearLastLevelP6P7(LastLevelP6P7):
    """P6 and P7 without a ReLU between them (ATSS, GFL and DDOD in their papers' code)."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        """(N, C, H, W) of the source level -> P6, P7."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_dense_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet with the pyramid that MODEL.FPN.TOP_BLOCK_* and INIT describe.

    Raises:
        ValueError: for another ``MODEL.FPN.TOP_BLOCK_IN_FEATURE``.
    """
    return dense_fpn(cfg, build_resnet_backbone(cfg, input_shape))


def dense_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """The pyramid on a backbone that has "res5".

    Raises:
        ValueError: for another ``MODEL.FPN.TOP_BLOCK_IN_FEATURE``.
    """
    fpn = cfg.MODEL.FPN
    channels = {"res5": bottom_up.output_shape()["res5"].channels, "p5": fpn.OUT_CHANNELS}
    source = fpn.TOP_BLOCK_IN_FEATURE
    if source not in channels:
        raise ValueError(
            f'MODEL.FPN.TOP_BLOCK_IN_FEATURE is {source!r}: it must be "res5" or "p5".'
        )
    pyramid = FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block(cfg, channels[source], source),
        fuse_type=fpn.FUSE_TYPE,
    )
    init_pyramid(cfg, pyramid)
    return pyramid


def top_block(cfg: CfgNode, channels: int, source: str) -> LastLevelP6P7:
    """P6 and P7 of a level with so many channels, by ``MODEL.FPN.TOP_BLOCK_RELU``."""
    block = LastLevelP6P7 if cfg.MODEL.FPN.TOP_BLOCK_RELU else LinearLastLevelP6P7
    return block(channels, cfg.MODEL.FPN.OUT_CHANNELS, source)


def init_pyramid(cfg: CfgNode, pyramid: FPN) -> None:
    """Initial weights of all but the backbone, by ``MODEL.FPN.INIT``."""
    if cfg.MODEL.FPN.INIT == "xavier":
        for name, module in pyramid.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("bottom_up"):
                nn.init.xavier_uniform_(module.weight)
