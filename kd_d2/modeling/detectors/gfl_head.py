"""The head of GFL: that of ATSS without its third output, and with a distribution for each side.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l, B bins
of a side.
"""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from kd_d2.modeling.detectors.fcos_head import (
    Scale,
    initialize_head,
    make_tower,
    tower_channels,
)


class GFLHead(nn.Module):
    """Class scores and four distributions of distances at every cell (arXiv 2006.04388).

    Parameter names are those of :class:`ATSSHead`.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        reg_max: int = 16,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            input_shape: channels of each level, fine to coarse; equal channels.
            num_classes: K, without background.
            reg_max: the last of the B bins 0, 1, ..., in strides.
            num_convs: 3x3 convolutions per tower.
            norm: norm after each of them, as for :class:`ATSSHead`.
            prior_prob: probability of every class at the first iteration.

        Raises:
            ValueError: levels of different width, or a width that the norm cannot divide.
        """
        super().__init__()
        channels = tower_channels(input_shape, norm, "GFL")
        tower = (channels, num_convs, norm, len(input_shape))
        self.cls_subnet = make_tower(*tower, bias=not norm)
        self.bbox_subnet = make_tower(*tower, bias=not norm)
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4 * (reg_max + 1), kernel_size=3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape)

        initialize_head(self, prior_prob)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        gfl = cfg.MODEL.GFL
        return {
            "input_shape": input_shape,
            "num_classes": gfl.NUM_CLASSES,
            "reg_max": gfl.REG_MAX,
            "num_convs": gfl.NUM_CONVS,
            "norm": gfl.NORM,
            "prior_prob": gfl.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); logits of the bins (N, 4 * B, H_l, W_l), those of left,
            top, right, bottom one after the other. Each a list over the levels.
        """
        if len(features) != len(self.scales):
            raise ValueError(f"GFL head of {len(self.scales)} levels got {len(features)} features.")
        logits, bins = [], []
        for feature, scale in zip(features, self.scales, strict=True):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            bins.append(scale(self.bbox_pred(self.bbox_subnet(feature))))
        return logits, bins
