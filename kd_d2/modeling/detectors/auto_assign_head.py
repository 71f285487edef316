"""The head of AutoAssign: FCOS's, with objectness, and a prior of where objects have their centres.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from kd_d2.modeling.detectors.fcos_head import (
    Scale,
    initialize_head,
    make_tower,
    tower_channels,
)

_FIRST_DISTANCE = 4.0  # strides


class CenterPrior(nn.Module):
    """Parameters of a Gaussian around the centre of an object, learned for each class.

    Attributes:
        mean: (K, 2) its place in x and y, in strides from the object's centre.
        sigma: (K, 2) its deviations, in strides.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes, 2))
        self.sigma = nn.Parameter(torch.ones(num_classes, 2))


class AutoAssignHead(nn.Module):
    """Class scores, distances and objectness of every cell (arXiv 2007.03496).

    Parameter names are those of :class:`FCOSHead`, but for ``objectness`` instead of
    ``centerness``, and for ``center_prior.mean`` and ``center_prior.sigma``, which only the losses
    read.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.02,
    ):
        """
        Args:
            input_shape: channels and stride of each level, fine to coarse; equal channels.
            num_classes: K, without background.
            num_convs: 3x3 convolutions per tower.
            norm: norm after each of them, as for :class:`FCOSHead`.
            prior_prob: probability of every class at the first iteration.

        Raises:
            ValueError: levels of different width, or a width that the norm cannot divide.
        """
        super().__init__()
        channels = tower_channels(input_shape, norm, "AutoAssign")
        self._strides = [shape.stride for shape in input_shape]

        self.cls_subnet = make_tower(channels, num_convs, norm, len(input_shape))
        self.bbox_subnet = make_tower(channels, num_convs, norm, len(input_shape))
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, kernel_size=3, padding=1)
        self.objectness = nn.Conv2d(channels, 1, kernel_size=3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape)
        self.center_prior = CenterPrior(num_classes)

        initialize_head(self, prior_prob)
        # behind the ReLU an empty box would never learn to grow
        nn.init.constant_(self.bbox_pred.bias, _FIRST_DISTANCE)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        node = cfg.MODEL.AUTOASSIGN
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
            class logits (N, K, H_l, W_l); distances l, t, r, b in pixels (N, 4, H_l, W_l), not
            negative; objectness logits (N, 1, H_l, W_l). Each a list over the levels.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"AutoAssign head of {len(self.scales)} levels got {len(features)} features."
            )
        logits, distances, objectness = [], [], []
        for feature, scale, stride in zip(features, self.scales, self._strides, strict=True):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_feature = self.bbox_subnet(feature)
            # float32 under autocast, see FCOSHead
            distances.append(F.relu(scale(self.bbox_pred(box_feature))) * stride)
            objectness.append(self.objectness(box_feature))
        return logits, distances, objectness
