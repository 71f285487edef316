"""The config nodes of the heads, and the rules of their values."""

from detectron2.config import CfgNode as CN

from kd_d2.config.rules import Rule, list_of, number, share, truth, whole

__all__ = ["HEAD_VALUES", "add_head_config"]


def add_head_config(cfg: CN) -> None:
    """Add a node for each head to a config that has ``MODEL.KD``.

    Every key is the argument of the same name of the head's class. The weights of CWD are those of
    public configs, all others the papers' for dense detectors.
    """
    _add_pkd(cfg)
    _add_cwd(cfg)
    _add_fgd(cfg)
    _add_mgd(cfg)
    _add_fgfi(cfg)
    _add_cross_kd(cfg)
    _add_soft_label(cfg)
    _add_dkd(cfg)


def _add_pkd(cfg: CN) -> None:
    pkd = cfg.MODEL.KD.PKD = CN()
    # Factor of the loss. The paper uses 6 for two-stage and 10 for one-stage students.
    pkd.WEIGHT = 10.0
    # A learned 1x1 convolution on the student's features, for unequal channel counts. Here as in
    # all heads below, and one for all levels.
    pkd.ADAPTER = False


def _add_cwd(cfg: CN) -> None:
    cwd = cfg.MODEL.KD.CWD = CN()
    # Factor of the loss.
    cwd.WEIGHT = 10.0
    # Of the softmax over the cells; the higher, the more the weak cells count.
    cwd.TEMPERATURE = 1.0
    cwd.ADAPTER = False


def _add_fgd(cfg: CN) -> None:
    fgd = cfg.MODEL.KD.FGD = CN()
    # Factors of the losses of the foreground, of the background, of the attentions and of the
    # global relations (the paper's alpha, beta, gamma, lambda). The paper uses 1e-3, 5e-4, 5e-4,
    # 5e-6 for students with anchors, 1.6e-3, 8e-4, 8e-4, 8e-6 for those without, and 5e-5, 2.5e-5,
    # 5e-5, 5e-7 for two-stage students.
    fgd.FOREGROUND_WEIGHT = 1e-3
    fgd.BACKGROUND_WEIGHT = 5e-4
    fgd.ATTENTION_WEIGHT = 5e-4
    fgd.GLOBAL_WEIGHT = 5e-6
    # Of the softmax that makes attentions of magnitudes.
    fgd.TEMPERATURE = 0.5
    fgd.ADAPTER = False


def _add_mgd(cfg: CN) -> None:
    mgd = cfg.MODEL.KD.MGD = CN()
    # Factor of the loss, and the share of the cells that are hidden (alpha, lambda). The paper uses
    # 2e-5 and 0.65 for one-stage, 5e-7 and 0.45 for two-stage students.
    mgd.WEIGHT = 2e-5
    mgd.MASK_SHARE = 0.65
    mgd.ADAPTER = False


def _add_fgfi(cfg: CN) -> None:
    fgfi = cfg.MODEL.KD.FGFI = CN()
    # Factor of the loss. The paper uses 0.01 for Faster R-CNN without a pyramid; "tune it" is the
    # authors' advice for others.
    fgfi.WEIGHT = 0.01
    # A cell is near an object if the IoU of one of its anchors is above this share of the largest
    # IoU that the object has with any anchor.
    fgfi.THRESHOLD = 0.5
    # The anchors of a cell: square roots of their areas, in strides of their level, and ratios of
    # height to width. RetinaNet's, whatever anchors the student has, if any.
    fgfi.SIZES = [4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)]
    fgfi.ASPECT_RATIOS = [0.5, 1.0, 2.0]
    # On, as the paper found it to help even with equal channels.
    fgfi.ADAPTER = True


def _add_cross_kd(cfg: CN) -> None:
    cross = cfg.MODEL.KD.CROSSKD = CN()
    # Blocks of either tower that the student's features pass before they change over to the
    # teacher's. The paper uses 3 of 4.
    cross.BLOCKS = 3
    # Factors of the losses of the cross-head class scores and boxes. The paper uses 1 and 1, but
    # for GFL, whose boxes are compared as distributions, 1 and 4.
    cross.CLS_WEIGHT = 1.0
    cross.BOX_WEIGHT = 1.0
    # As in SOFTLABEL below.
    cross.BETA = 1.0
    # Give the student's features the mean and the deviation of the teacher's, channel by channel,
    # before they change over.
    cross.ALIGN = True


def _add_soft_label(cfg: CN) -> None:
    soft = cfg.MODEL.KD.SOFTLABEL = CN()
    # Factor of the loss.
    soft.WEIGHT = 1.0
    # How little class scores count that nearly agree with the teacher's; at least 1.
    soft.BETA = 1.0


def _add_dkd(cfg: CN) -> None:
    dkd = cfg.MODEL.KD.DKD = CN()
    # Factors of the knowledge of the right class and of that of the others (the paper's alpha and
    # beta), and the temperature of the softmax, as in the authors' detectors.
    dkd.TARGET_WEIGHT = 1.0
    dkd.OTHERS_WEIGHT = 0.25
    dkd.TEMPERATURE = 1.0


_NOT_NEGATIVE = number(least=0)
_ABOVE_ZERO = number(above=0)

HEAD_VALUES: dict[str, dict[str, Rule]] = {
    "MODEL.KD.PKD": {"WEIGHT": _NOT_NEGATIVE, "ADAPTER": truth},
    "MODEL.KD.CWD": {"WEIGHT": _NOT_NEGATIVE, "TEMPERATURE": _ABOVE_ZERO, "ADAPTER": truth},
    "MODEL.KD.FGD": {
        "FOREGROUND_WEIGHT": _NOT_NEGATIVE,
        "BACKGROUND_WEIGHT": _NOT_NEGATIVE,
        "ATTENTION_WEIGHT": _NOT_NEGATIVE,
        "GLOBAL_WEIGHT": _NOT_NEGATIVE,
        "TEMPERATURE": _ABOVE_ZERO,
        "ADAPTER": truth,
    },
    "MODEL.KD.MGD": {"WEIGHT": _NOT_NEGATIVE, "MASK_SHARE": share, "ADAPTER": truth},
    "MODEL.KD.FGFI": {
        "WEIGHT": _NOT_NEGATIVE,
        "THRESHOLD": number(least=0, below=1),
        "SIZES": list_of(_ABOVE_ZERO, "numbers above 0, e.g. [4.0, 5.0]", empty=False),
        "ASPECT_RATIOS": list_of(_ABOVE_ZERO, "numbers above 0, e.g. [0.5, 1.0]", empty=False),
        "ADAPTER": truth,
    },
    "MODEL.KD.CROSSKD": {
        "BLOCKS": whole(1),
        "CLS_WEIGHT": _NOT_NEGATIVE,
        "BOX_WEIGHT": _NOT_NEGATIVE,
        "BETA": number(least=1),
        "ALIGN": truth,
    },
    "MODEL.KD.SOFTLABEL": {"WEIGHT": _NOT_NEGATIVE, "BETA": number(least=1)},
    "MODEL.KD.DKD": {
        "TARGET_WEIGHT": _NOT_NEGATIVE,
        "OTHERS_WEIGHT": _NOT_NEGATIVE,
        "TEMPERATURE": _ABOVE_ZERO,
    },
}
