"""The config nodes of LAD and CoLAD, and the checks of their values."""

from detectron2.config import CfgNode as CN

from kd_d2.config.rules import check_values, number, one_of, share

_NOT_NEGATIVE = number(least=0)


def add_lad_config(cfg: CN) -> None:
    """Adds ``MODEL.KD.FOCALSOFTLABEL`` and ``MODEL.KD.COLAD`` to a config, in place.

    LAD itself is a key of the house: ``MODEL.KD.ASSIGN_BY teacher``.
    """
    soft = cfg.MODEL.KD.FOCALSOFTLABEL = CN()
    # Factors of the losses of class scores, of the IoU output and of boxes. The authors' configs
    # have 10 and 10 where there is no other loss, and 2 and 10 in SoLAD.
    soft.CLS_WEIGHT = 10.0
    soft.QUALITY_WEIGHT = 10.0
    soft.BOX_WEIGHT = 1.3
    # How much more class and IoU scores count that are far from the teacher's.
    soft.GAMMA = 0.5
    # Boxes and IoU scores are compared where the IoU with an object is above this. The paper says
    # 0.5, as SoLAD's config; that of soft labels alone leaves it at 0.1.
    soft.MIN_IOU = 0.1
    # Whose IoU: that of the "teacher"'s box, or that of the "anchor".
    soft.NEAR = "teacher"

    colad = cfg.MODEL.KD.COLAD = CN()
    # Which of two networks that learn together chooses an object's anchors on a level: the one with
    # more "std_mean" (standard deviation of its costs by their mean), as released; or with more
    # "fisher" (distance of the two Gaussians of its costs by their variances).
    colad.SWITCH = "std_mean"


_VALUES = {
    "MODEL.KD.FOCALSOFTLABEL": {
        **{key: _NOT_NEGATIVE for key in ("CLS_WEIGHT", "QUALITY_WEIGHT", "BOX_WEIGHT", "GAMMA")},
        "MIN_IOU": share,
        "NEAR": one_of("teacher", "anchor"),
    },
    "MODEL.KD.COLAD": {"SWITCH": one_of("std_mean", "fisher")},
}


def check_lad_config(cfg: CN) -> None:
    """Checks the nodes of a finished config.

    Raises:
        ConfigError: with one sentence on the first wrong value.
    """
    check_values(cfg, _VALUES)
