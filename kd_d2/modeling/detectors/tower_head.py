"""What the heads of FCOS and its successors share: two towers for all levels, a scale for each.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from torch import Tensor, nn

_GROUP_NORM_GROUPS = 32  # of Detectron2's "GN"


class Scale(nn.Module):
    """Multiplies by one learnable number."""

    def __init__(self, initial: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([initial], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class TowerHead(nn.Module):
    """Has ``cls_subnet``, ``bbox_subnet``, ``cls_score``, ``bbox_pred``, ``scales.{level}.scale``.

    Those are the names of the cvpods implementation of FCOS that LGD was published with. Subclasses
    have ``forward``, which returns what comes of :meth:`towers`.

    Attributes:
        arch: the detector's name; in capitals, that of the node of its keys.
        third: name of a third prediction of one number a cell, if there is one.
        bias_before_norm: whether convolutions have biases where a norm follows.
    """

    arch: str
    third: str | None = None
    bias_before_norm = False

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
        box_channels: int = 4,
    ):
        """
        Args:
            input_shape: channels and stride of each level, fine to coarse; equal channels.
            num_classes: K, without background.
            num_convs: 3x3 convolutions per tower.
            norm: norm after each of them, a name that ``detectron2.layers.get_norm`` knows or "".
                "BN" and "SyncBN" keep separate statistics per level, as in RetinaNetHead.
            prior_prob: probability of every class at the first iteration.
            box_channels: outputs of a cell that say where its box is.

        Raises:
            ValueError: levels of different width, or a width that the norm cannot divide.
        """
        super().__init__()
        channels = self._width(input_shape, norm)
        self.strides = [shape.stride for shape in input_shape]
        bias = self.bias_before_norm or not norm
        self.cls_subnet = _tower(channels, num_convs, norm, len(input_shape), bias)
        self.bbox_subnet = _tower(channels, num_convs, norm, len(input_shape), bias)
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, box_channels, kernel_size=3, padding=1)
        if self.third:
            self.add_module(self.third, nn.Conv2d(channels, 1, kernel_size=3, padding=1))
        self.scales = nn.ModuleList(Scale() for _ in input_shape)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        node = cfg.MODEL[cls.arch.upper()]
        return {
            "input_shape": input_shape,
            "num_classes": node.NUM_CLASSES,
            "num_convs": node.NUM_CONVS,
            "norm": node.NORM,
            "prior_prob": node.PRIOR_PROB,
        }

    def towers(self, features: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Scale, int]]:
        """Of each level: what the class and the box tower make of it, its scale, its stride.

        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Raises:
            ValueError: another number of levels than the head was built for.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"{self.arch} head of {len(self.scales)} levels got {len(features)} features."
            )
        for feature, scale, stride in zip(features, self.scales, self.strides, strict=True):
            yield self.cls_subnet(feature), self.bbox_subnet(feature), scale, stride

    def _width(self, input_shape: list[ShapeSpec], norm: str) -> int:
        channels = input_shape[0].channels
        if any(shape.channels != channels for shape in input_shape):
            raise ValueError(
                f"The towers of {self.arch} are shared by all levels, which must have equal "
                f"channels, but they have {[shape.channels for shape in input_shape]}."
            )
        if norm == "GN" and channels % _GROUP_NORM_GROUPS:
            key = f"MODEL.{self.arch.upper()}.NORM"
            raise ValueError(
                f"{key} 'GN' makes {_GROUP_NORM_GROUPS} groups and cannot divide {channels} "
                f"channels: set MODEL.FPN.OUT_CHANNELS to a multiple, or {key} to 'BN'."
            )
        return channels


def _tower(channels: int, num_convs: int, norm: str, num_levels: int, bias: bool) -> nn.Sequential:
    """``num_convs`` times [conv3x3, norm, ReLU]."""
    if norm in ("BN", "SyncBN"):
        bn_class = nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm
        make_norm = partial(CycleBatchNormList, num_levels, bn_class)
    else:
        make_norm = partial(_named_norm, norm)
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=bias))
        if norm:
            layers.append(make_norm(num_features=channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _named_norm(norm: str, num_features: int) -> nn.Module:
    return get_norm(norm, num_features)
