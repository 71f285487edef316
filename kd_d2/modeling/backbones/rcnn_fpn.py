"""The pyramid of the R-CNNs on a backbone of our own."""

from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

__all__ = ["rcnn_fpn"]


def rcnn_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """P6 is the max-pooled coarsest level of the FPN, as in ``build_resnet_fpn_backbone``."""
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=fpn.FUSE_TYPE,
    )
