"""The config of a second network that is trained beside the student (CoLAD)."""

from detectron2.config import CfgNode

from kd_d2.config.student import student_config
from kd_d2.config.teacher import load_teacher_cfg

__all__ = ["peer_config"]


def peer_config(cfg: CfgNode) -> CfgNode:
    """The plain config of the peer: that of ``MODEL.KD.TEACHER``, or the student's if it has none.

    ``MODEL.WEIGHTS`` is what it begins with: ``MODEL.KD.TEACHER.WEIGHTS`` if that is given, whose
    classes are ``MODEL.KD.TEACHER.CLASSES``.
    """
    node = cfg.MODEL.KD.TEACHER
    peer = (load_teacher_cfg(cfg) if node.CONFIG_FILE else student_config(cfg)).clone()
    peer.defrost()
    if node.WEIGHTS:
        peer.MODEL.WEIGHTS, peer.MODEL.WEIGHTS_CLASSES = node.WEIGHTS, list(node.CLASSES)
    if peer.MODEL.PAA.BOX_LOSS_WEIGHTING == "auto":
        peer.MODEL.PAA.BOX_LOSS_WEIGHTING = "none"
    peer.freeze()
    return peer
