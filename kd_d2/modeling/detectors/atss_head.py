"""The head of ATSS: FCOS's towers without biases, and boxes relative to anchors.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
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


class ATSSHead(nn.Module):
    """Class scores, box deltas and the quality of the box at every cell (arXiv 1912.02424).

    Parameter names are those of :class:`FCOSHead`, but for ``quality`` instead of ``centerness``:
    what that output means is decided by what it is trained with.
    """

    arch = "ATSS"  # the detector, and the node of its keys

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
    ):
        """
        Args:
            input_shape: channels of each level, fine to coarse; equal channels.
            num_classes: K, without background.
            num_convs: 3x3 convolutions per tower.
            norm: norm after each of them, as for :class:`FCOSHead`. Only without one do they have
                biases.
            prior_prob: probability of every class at the first iteration.

        Raises:
            ValueError: levels of different width, or a width that the norm cannot divide.
        """
        super().__init__()
        channels = tower_channels(input_shape, norm, self.arch)
        tower = (channels, num_convs, norm, len(input_shape))
        self.cls_subnet = make_tower(*tower, bias=not norm)
        self.bbox_subnet = make_tower(*tower, bias=not norm)
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, kernel_size=3, padding=1)
        self.quality = nn.Conv2d(channels, 1, kernel_size=3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape)

        initialize_head(self, prior_prob)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        node = cfg.MODEL[cls.arch]
        return {
            "input_shape": input_shape,
            "num_classes": node.NUM_CLASSES,
            "num_convs": node.NUM_CONVS,
            "norm": node.NORM,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); deltas dx, dy, dw, dh (N, 4, H_l, W_l); logits of the
            quality (N, 1, H_l, W_l). Each a list over the levels.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"{self.arch} head of {len(self.scales)} levels got {len(features)} features."
            )
        logits, deltas, quality = [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_feature = self.bbox_subnet(feature)
            deltas.append(scale(self.bbox_pred(box_feature)))
            quality.append(self.quality(box_feature))
        return logits, deltas, quality
