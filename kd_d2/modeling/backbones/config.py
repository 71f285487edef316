"""The config keys of the backbones that Detectron2 lacks or has no yaml for."""

from detectron2.config import CfgNode as CN

__all__ = ["add_backbone_config"]


def add_backbone_config(cfg: CN) -> None:
    """Add the keys of the backbones that Detectron2 lacks."""
    # The dense detectors' pyramid in kd_d2's own builders, build_dense_resnet_fpn_backbone and that
    # of the narrow ResNets (Detectron2's knows the defaults only, and the Swin builders always take
    # P5). Where P6 comes from: "res5", or "p5" as in the FCOS and ATSS papers (fewer parameters). A
    # ReLU between P6 and P7, or none, as in ATSS. Initial weights: "caffe2" (Detectron2's), or
    # "xavier".
    cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = "res5"
    cfg.MODEL.FPN.TOP_BLOCK_RELU = True
    cfg.MODEL.FPN.INIT = "caffe2"
    _add_swin(cfg)


def _add_swin(cfg: CN) -> None:
    # Swin Transformer (arXiv 2103.14030); the defaults are Swin-T. MODEL.BACKBONE.FREEZE_AT counts
    # as for a ResNet: 0 or less freezes nothing (the usual), 1 the patch embedding, 2 stage2 too,
    # and so on up to 5. Detectron2's default is 2, so the yaml of a Swin sets -1.
    swin = cfg.MODEL.SWIN = CN()
    # Channels of stage2; each later stage doubles them.
    swin.EMBED_DIM = 96
    # Blocks and attention heads of stage2, stage3, stage4 and stage5.
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    # Side of an attention window in cells. ImageNet weights of another size are interpolated.
    swin.WINDOW_SIZE = 7
    # Hidden channels of a block's two-layer perceptron, relative to its input.
    swin.MLP_RATIO = 4.0
    # Probability of dropping the last block's branches for an image (stochastic depth); it grows
    # linearly from 0 at the first block. In training only.
    swin.DROP_PATH_RATE = 0.2
    # Add a learned position embedding to the patches, interpolated from that of a square image of
    # so many pixels. None of the released ImageNet weights has one.
    swin.APE = False
    swin.PRETRAIN_IMG_SIZE = 224
    # LayerNorm after the patch embedding.
    swin.PATCH_NORM = True
    # Compute each block anew in the backward pass instead of keeping its activations: less memory
    # for about a third more time.
    swin.USE_CHECKPOINT = False
    # Outputs of the bare backbone (build_swin_backbone), fine to coarse, the last being "stage5".
    # The pyramids take those that they need, whatever this and MODEL.FPN.IN_FEATURES say.
    swin.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]
