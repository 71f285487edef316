"""The head of GFL: that of ATSS without its third output, and with a distribution for each side.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l, B bins of a side.
"""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from kd_d2.modeling.detectors.tower_head import TowerHead


class GFLHead(TowerHead):
    """Class scores and four distributions of distances at every cell (arXiv 2006.04388)."""

    arch = "GFL"

    @configurable
    def __init__(self, *, reg_max: int = 16, **common):
        """
        Args:
            reg_max: the last of the B bins 0, 1, ..., in strides.
            common: arguments of :class:`TowerHead` without ``box_channels``.
        """
        super().__init__(box_channels=4 * (reg_max + 1), **common)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "reg_max": cfg.MODEL.GFL.REG_MAX}

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); logits of the bins (N, 4 * B, H_l, W_l), those of left,
            top, right, bottom one after the other. Each a list over the levels.
        """
        logits, bins = [], []
        for cls_feature, box_feature, scale, _ in self.towers(features):
            logits.append(self.cls_score(cls_feature))
            bins.append(scale(self.bbox_pred(box_feature)))
        return logits, bins
