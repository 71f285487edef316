"""Small models whose checkpoints are converted from the authors' format."""

from kd_d2.checkpoint.converters import convert_checkpoint


def convert_config(lgd_cfg, arch="RetinaNet"):
    cfg = lgd_cfg(arch)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = arch == "MaskRCNN"
    cfg.MODEL.KD.LGD.ADD_CONTEXT_BOX = arch != "FCOS"
    return cfg


def convert(state, model):
    return convert_checkpoint("lgd", state, model)


def swin_config(lgd_cfg, arch):
    cfg = convert_config(lgd_cfg, arch)
    dense = arch == "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = f"build_{'retinanet_' if dense else ''}swin_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = -1
    cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4", "stage5"][dense:]
    cfg.MODEL.SWIN.EMBED_DIM = 8
    cfg.MODEL.SWIN.DEPTHS = [1, 2, 1, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 1, 2, 2]
    cfg.MODEL.SWIN.WINDOW_SIZE = 3
    return cfg
