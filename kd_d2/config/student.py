"""From a distillation config to the plain config of its student."""

from detectron2.config import CfgNode

DISTILLERS = ("FrozenTeacherDistiller", "LabelGuidedDistiller")


def is_distiller(cfg: CfgNode) -> bool:
    """Whether the config's META_ARCHITECTURE is one of ours."""
    return cfg.MODEL.META_ARCHITECTURE in DISTILLERS


def student_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose META_ARCHITECTURE is the student's; plain configs come back equal."""
    student = cfg.clone()
    student.defrost()
    if is_distiller(student):
        student.MODEL.META_ARCHITECTURE = cfg.MODEL.KD.STUDENT
    if cfg.is_frozen():
        student.freeze()
    return student
