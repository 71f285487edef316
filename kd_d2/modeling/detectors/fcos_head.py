"""The head of FCOS: two towers shared by all levels, and one learnable scale per level.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

import math
from functools import partial

import torch
from detectron2.config import configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

_GROUP_NORM_GROUPS = 32  # of Detectron2's "GN"


class Scale(nn.Module):
    """Multiplies by one learnable number."""

    def __init__(self, initial: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([initial], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FCOSHead(nn.Module):
    """Class scores, distances and centerness of every cell (arXiv 1904.01355, 2006.09214).

    Parameter names are those of the cvpods implementation that LGD was published with, so its
    checkpoints fit: ``cls_subnet``, ``bbox_subnet``, ``cls_score``, ``bbox_pred``, ``centerness``,
    ``scales.{level}.scale``.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
        centerness_on_reg: bool = True,
        norm_reg_targets: bool = True,
    ):
        """
        Args:
            input_shape: channels and stride of each level, fine to coarse; equal channels.
            num_classes: K, without background.
            num_convs: 3x3 convolutions per tower.
            norm: norm after each of them, a name that ``detectron2.layers.get_norm`` knows or "".
                "BN" and "SyncBN" keep separate statistics per level, as in RetinaNetHead.
            prior_prob: probability of every class at the first iteration.
            centerness_on_reg: predict centerness from the box tower instead of the class tower.
            norm_reg_targets: distances are ReLU(scale * x) * stride; False: exp(scale * x).

        Raises:
            ValueError: levels of different width, or a width that the norm cannot divide.
        """
        super().__init__()
        channels = tower_channels(input_shape, norm, "FCOS")
        self._strides = [shape.stride for shape in input_shape]
        self._centerness_on_reg = centerness_on_reg
        self._norm_reg_targets = norm_reg_targets

        self.cls_subnet = make_tower(channels, num_convs, norm, len(input_shape))
        self.bbox_subnet = make_tower(channels, num_convs, norm, len(input_shape))
        self.cls_score = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, kernel_size=3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, kernel_size=3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in input_shape)

        initialize_head(self, prior_prob)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        fcos = cfg.MODEL.FCOS
        return {
            "input_shape": input_shape,
            "num_classes": fcos.NUM_CLASSES,
            "num_convs": fcos.NUM_CONVS,
            "norm": fcos.NORM,
            "prior_prob": fcos.PRIOR_PROB,
            "centerness_on_reg": fcos.CENTERNESS_ON_REG,
            "norm_reg_targets": fcos.NORM_REG_TARGETS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); distances l, t, r, b in pixels (N, 4, H_l, W_l), not
            negative; centerness logits (N, 1, H_l, W_l). Each a list over the levels.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"FCOS head of {len(self.scales)} levels got {len(features)} features."
            )
        logits, distances, centerness = [], [], []
        for feature, scale, stride in zip(features, self.scales, self._strides, strict=True):
            cls_feature = self.cls_subnet(feature)
            box_feature = self.bbox_subnet(feature)
            logits.append(self.cls_score(cls_feature))
            centerness.append(
                self.centerness(box_feature if self._centerness_on_reg else cls_feature)
            )
            # Under autocast the float32 scale lifts the product to float32: in float16 a
            # distance of 1000 pixels would be rounded to half pixels.
            raw = scale(self.bbox_pred(box_feature))
            distances.append(F.relu(raw) * stride if self._norm_reg_targets else torch.exp(raw))
        return logits, distances, centerness


def tower_channels(input_shape: list[ShapeSpec], norm: str, arch: str) -> int:
    """The width of all levels.

    Args:
        arch: name of the detector; in capitals, that of the node of its keys.

    Raises:
        ValueError: levels of different width, or a width that the norm cannot divide.
    """
    channels = input_shape[0].channels
    if any(shape.channels != channels for shape in input_shape):
        raise ValueError(
            f"The towers of {arch} are shared by all levels, which must have equal channels, but "
            f"they have {[shape.channels for shape in input_shape]}."
        )
    if norm == "GN" and channels % _GROUP_NORM_GROUPS:
        raise ValueError(
            f"MODEL.{arch.upper()}.NORM 'GN' makes {_GROUP_NORM_GROUPS} groups and cannot divide "
            f"{channels} channels: set MODEL.FPN.OUT_CHANNELS to a multiple, or "
            f"MODEL.{arch.upper()}.NORM to 'BN'."
        )
    return channels


def initialize_head(head: nn.Module, prior_prob: float) -> None:
    """Normal weights and zero biases; every class begins with a probability.

    Args:
        head: with ``cls_score``, its class prediction.
        prior_prob: that probability.
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.constant_(head.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))


def make_tower(
    channels: int, num_convs: int, norm: str, num_levels: int, bias: bool = True
) -> nn.Sequential:
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
