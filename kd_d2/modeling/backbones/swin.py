"""Swin Transformers (arXiv 2103.14030) from a yaml, over Detectron2's ``SwinTransformer``.

Parameters keep Detectron2's names, which are those of the original release; ImageNet weights of
that release are converted on load, see ``kd_d2/checkpoint/swin_weights.py``. The outputs are named
stage2 to stage5 (strides 4 to 32) as a ResNet's are res2 to res5: Detectron2's p0 to p3 would read
like levels of the feature pyramid, and a top block that asks for "p5" must get the pyramid's.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, SwinTransformer
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.swin import SwinTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from kd_d2.modeling.backbones.dense_fpn import init_pyramid, top_block

__all__ = [
    "Swin",
    "build_retinanet_swin_fpn_backbone",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "check_swin_config",
]

_STAGES = ("stage2", "stage3", "stage4", "stage5")
# What the pyramids are made of. A bottom-up network has these outputs and no other, so that none
# of its output norms lacks a gradient, which DDP would wait for.
_PYRAMIDS = {"build_swin_fpn_backbone": _STAGES, "build_retinanet_swin_fpn_backbone": _STAGES[1:]}


class _CheckpointedBlock(SwinTransformerBlock):
    """A block that is computed anew in the backward pass.

    Detectron2's own switch takes the reentrant kind of checkpoint, which gives no gradient to a
    block whose input needs none (behind a frozen patch embedding) and is to be removed from torch.
    """

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        size = self.H, self.W

        def run(x, mask_matrix):
            # the size of this pass; there may have been another one before the backward pass
            self.H, self.W = size
            return super(_CheckpointedBlock, self).forward(x, mask_matrix)

        return checkpoint(run, x, mask_matrix, use_reentrant=False)


class Swin(SwinTransformer):
    """Detectron2's Swin Transformer with sane output names, and stochastic depth without timm."""

    def __init__(
        self,
        *,
        out_features: Sequence[str] = _STAGES,
        freeze_at: int = -1,
        depths: Sequence[int] = (2, 2, 6, 2),
        drop_path_rate: float = 0.2,
        use_checkpoint: bool = False,
        **kwargs,
    ):
        """
        Args:
            out_features: some of stage2, stage3, stage4, stage5.
            freeze_at: as for a ResNet: 1 freezes the patch embedding (and position embedding), 2
                stage2 too (with the merging of patches behind it), ..., 5 all but the output
                norms; 0 and less freeze nothing. What is frozen stays in eval mode.
            depths: blocks per stage.
            drop_path_rate: probability that the last block's branches are dropped for an image.
            use_checkpoint: compute blocks anew in the backward pass.
            kwargs: others of Detectron2's ``SwinTransformer``.
        """
        # Detectron2 reads numbers from tensors while building, which the meta device has not
        with torch.device("cpu"):
            super().__init__(
                out_indices=sorted(_STAGES.index(name) for name in out_features),
                frozen_stages=freeze_at if freeze_at > 0 else -1,
                depths=depths,
                drop_path_rate=0.0,  # any other imports timm
                **kwargs,
            )
            rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.to(torch.get_default_device())
        blocks = [block for layer in self.layers for block in layer.blocks]
        for block, rate in zip(blocks, rates, strict=True):
            if rate > 0:
                block.drop_path = StochasticDepth(rate, "row")
            if use_checkpoint:
                block.__class__ = _CheckpointedBlock
        self._out_features = [_STAGES[i] for i in self.out_indices]
        self._out_feature_channels = {
            name: self.num_features[_STAGES.index(name)] for name in out_features
        }
        self._out_feature_strides = {name: 4 * 2 ** _STAGES.index(name) for name in out_features}
        self._freeze_stages()

    @property
    def size_divisibility(self) -> int:
        """As Detectron2 means it; its own property misspells the attribute behind it.

        Swin pads what does not divide, so this only keeps strides exact.
        """
        return 32

    def train(self, mode: bool = True) -> "Swin":
        super().train(mode)
        # a frozen stage is a fixed function: no stochastic depth in it
        self._freeze_stages()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W).

        Returns:
            name -> (N, C, ceil(H / stride), ceil(W / stride)), fine to coarse.
        """
        outputs = super().forward(x)  # p0 to p3
        return {_STAGES[int(name[1:])]: output for name, output in outputs.items()}


def check_swin_config(cfg: CfgNode) -> None:
    """Check MODEL.SWIN and the keys beside it that a Swin backbone reads.

    Raises:
        ValueError: what cannot be built, or would leave parameters without a gradient.
    """
    swin, name = cfg.MODEL.SWIN, cfg.MODEL.BACKBONE.NAME
    for key in ("DEPTHS", "NUM_HEADS"):
        if len(swin[key]) != 4 or min(swin[key]) < 1:
            raise ValueError(
                f"MODEL.SWIN.{key} is {list(swin[key])}: give a positive number for each of "
                f"{', '.join(_STAGES)}."
            )
    for stage, (i, heads) in zip(_STAGES, enumerate(swin.NUM_HEADS), strict=True):
        if swin.EMBED_DIM * 2**i % heads:
            raise ValueError(
                f"The {swin.EMBED_DIM * 2**i} channels of {stage} cannot be divided into {heads} "
                "heads: change MODEL.SWIN.EMBED_DIM or NUM_HEADS."
            )
    if swin.WINDOW_SIZE < 2:
        raise ValueError(f"MODEL.SWIN.WINDOW_SIZE is {swin.WINDOW_SIZE}: it must be at least 2.")
    if not 0 <= swin.DROP_PATH_RATE < 1:
        raise ValueError(
            f"MODEL.SWIN.DROP_PATH_RATE is {swin.DROP_PATH_RATE}: it must be at least 0 and less "
            "than 1."
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT > 5:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but the last stage of a "
            "Swin is stage5: give at most 5, or -1 to freeze nothing."
        )
    outputs = list(swin.OUT_FEATURES)
    if outputs != [s for s in _STAGES if s in outputs] or outputs[-1:] != ["stage5"]:
        raise ValueError(
            f"MODEL.SWIN.OUT_FEATURES is {outputs}: name some of {', '.join(_STAGES)} in this "
            "order and stage5 as the last, because stages behind the last output would not train."
        )
    levels, asked = _PYRAMIDS.get(name), tuple(cfg.MODEL.FPN.IN_FEATURES)
    # names of another backbone come with the base config of the detector
    if levels and asked != levels and any(level in _STAGES for level in asked):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {list(asked)}, but {name} makes its pyramid of "
            f"{', '.join(levels)}: leave the key alone, or choose another MODEL.BACKBONE.NAME."
        )


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """Build the Swin Transformer without a feature pyramid.

    Raises:
        ValueError: see :func:`check_swin_config`.
    """
    return _build_swin(cfg, input_shape, cfg.MODEL.SWIN.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of the R-CNNs, P2 to P6: of stage2 to stage5, P6 being the max-pooled P5.

    Raises:
        ValueError: see :func:`check_swin_config`.
    """
    return _build_fpn(cfg, input_shape, "build_swin_fpn_backbone", LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The pyramid of the dense detectors, P3 to P7: of stage3 to stage5, P6 and P7 from P5.

    ``MODEL.FPN.TOP_BLOCK_RELU`` and ``INIT`` count, ``TOP_BLOCK_IN_FEATURE`` does not.

    Raises:
        ValueError: see :func:`check_swin_config`.
    """
    block = top_block(cfg, cfg.MODEL.FPN.OUT_CHANNELS, "p5")
    pyramid = _build_fpn(cfg, input_shape, "build_retinanet_swin_fpn_backbone", block)
    init_pyramid(cfg, pyramid)
    return pyramid


def _build_swin(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> Swin:
    check_swin_config(cfg)
    swin = cfg.MODEL.SWIN
    return Swin(
        out_features=out_features,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels,
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        mlp_ratio=swin.MLP_RATIO,
        drop_path_rate=swin.DROP_PATH_RATE,
        ape=swin.APE,
        pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
        patch_norm=swin.PATCH_NORM,
        use_checkpoint=swin.USE_CHECKPOINT,
    )


def _build_fpn(cfg: CfgNode, input_shape: ShapeSpec, name: str, block) -> FPN:
    levels = _PYRAMIDS[name]
    return FPN(
        bottom_up=_build_swin(cfg, input_shape, levels),
        in_features=levels,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
