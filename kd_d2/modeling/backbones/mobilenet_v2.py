"""MobileNetV2 (arXiv 1801.04381) as a backbone, over torchvision's ``mobilenet_v2``.

Its outputs are named like a ResNet's, and it reads a ResNet's keys: MODEL.RESNETS.OUT_FEATURES and
NORM, MODEL.BACKBONE.FREEZE_AT. So each config of a detector on a ResNet is one for it with another
MODEL.BACKBONE.NAME; what is special in the other keys of MODEL.RESNETS has no meaning here.
Parameters keep torchvision's names (``features.*``).
"""

from collections.abc import Sequence
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor
from torchvision.models import mobilenet_v2

from kd_d2.modeling.backbones.dense_fpn import dense_fpn
from kd_d2.modeling.backbones.rcnn_fpn import rcnn_fpn

__all__ = [
    "MobileNetV2",
    "build_dense_mobilenet_v2_fpn_backbone",
    "build_mobilenet_v2_backbone",
    "build_mobilenet_v2_fpn_backbone",
]

# name -> the block that ends it, channels; strides 4 to 32
_STAGES = {"res2": (3, 24), "res3": (6, 32), "res4": (13, 96), "res5": (18, 1280)}


class MobileNetV2(Backbone):
    """torchvision's network without its classifier, cut behind the last output."""

    def __init__(
        self, *, out_features: Sequence[str] = tuple(_STAGES), norm: str = "BN", freeze_at: int = 0
    ):
        """
        Args:
            out_features: some of res2 (24 channels), res3 (32), res4 (96) and res5 (1280), the
                output of the last 1x1 convolution.
            norm: see Detectron2's ``get_norm``.
            freeze_at: 1 freezes the stem, 2 what leads to res2, too, ..., 5 all; 0 and less
                nothing. Frozen norms do not change their statistics either.

        Raises:
            ValueError: there is no such output.
        """
        super().__init__()
        unknown = sorted(set(out_features) - set(_STAGES))
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}: a MobileNetV2 has "
                f"{', '.join(_STAGES)}."
            )
        self._out_features = [name for name in _STAGES if name in out_features]
        self._out_feature_channels = {name: _STAGES[name][1] for name in self._out_features}
        self._out_feature_strides = {
            name: 4 * 2 ** list(_STAGES).index(name) for name in self._out_features
        }
        self._ends = {_STAGES[name][0]: name for name in self._out_features}
        whole = mobilenet_v2(norm_layer=partial(get_norm, norm)).features
        self.features = whole[: max(self._ends) + 1]
        last_frozen = [-1, 0, *(end for end, _ in _STAGES.values())][max(0, min(freeze_at, 5))]
        for i in range(min(last_frozen + 1, len(self.features))):
            block = self.features[i].requires_grad_(False)
            self.features[i] = FrozenBatchNorm2d.convert_frozen_batchnorm(block)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W).

        Returns:
            name -> (N, C, ceil(H / stride), ceil(W / stride)), fine to coarse.
        """
        outputs = {}
        for i, block in enumerate(self.features):
            x = block(x)
            if i in self._ends:
                outputs[self._ends[i]] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MobileNetV2:
    """Build the network without a feature pyramid.

    Raises:
        ValueError: there is no such output, or images do not have three channels.
    """
    if input_shape.channels != 3:
        raise ValueError(
            f"MODEL.PIXEL_MEAN has {input_shape.channels} numbers: a MobileNetV2 reads 3 channels."
        )
    return MobileNetV2(
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of the R-CNNs, see :func:`rcnn_fpn`."""
    return rcnn_fpn(cfg, build_mobilenet_v2_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_dense_mobilenet_v2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of the dense detectors, see :func:`dense_fpn`.

    Raises:
        ValueError: for another ``MODEL.FPN.TOP_BLOCK_IN_FEATURE``.
    """
    return dense_fpn(cfg, build_mobilenet_v2_backbone(cfg, input_shape))
