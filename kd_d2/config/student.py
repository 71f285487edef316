"""From a distillation config to the plain config of its student, and back."""

from detectron2.config import CfgNode

# Teacher -> the distiller that it works in
DISTILLER_OF = {
    "Frozen": "FrozenTeacherDistiller",
    "LabelEncoder": "LabelGuidedDistiller",
    "Peer": "CoLearningDistiller",
}
DISTILLERS = tuple(DISTILLER_OF.values())


def is_distiller(cfg: CfgNode) -> bool:
    """Whether the config's META_ARCHITECTURE is one of ours."""
    return cfg.MODEL.META_ARCHITECTURE in DISTILLERS


def shares_labels(cfg: CfgNode) -> bool:
    """Whether another network has a say in which anchors of the student learn what."""
    return cfg.MODEL.KD.ASSIGN_BY == "teacher" or cfg.MODEL.KD.TEACHER.NAME == "Peer"


def student_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose META_ARCHITECTURE is the student's; plain configs come back equal."""
    student = cfg.clone()
    student.defrost()
    if is_distiller(student):
        student.MODEL.META_ARCHITECTURE = cfg.MODEL.KD.STUDENT
        paa = student.MODEL.PAA
        if paa.BOX_LOSS_WEIGHTING == "auto" and cfg.MODEL.KD.ENABLED and shares_labels(cfg):
            paa.BOX_LOSS_WEIGHTING = "none"
    if cfg.is_frozen():
        student.freeze()
    return student


def without_unused_nodes(cfg: CfgNode) -> CfgNode:
    """A copy without the nodes of detectors, heads and phases that a config does not use."""
    from kd_d2.config.names import detector_node
    from kd_d2.modeling.detectors import NODES
    from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
    from kd_d2.modeling.label_weights import LabelWeights

    used = cfg.clone()
    used.defrost()
    model = used.MODEL
    own = detector_node(student_config(cfg).MODEL.META_ARCHITECTURE)
    for node in NODES:
        if node != own:
            del model[node]
    if LabelWeights.from_config(cfg) is None:
        del model["LABEL_WEIGHTS"]
    if not cfg.PSEUDO_LABEL.TEACHERS:
        del used["PSEUDO_LABEL"]
    if not (is_distiller(cfg) and cfg.MODEL.KD.ENABLED):
        del model["KD"]
        return used
    for name, _ in DISTILL_HEAD_REGISTRY:
        if name not in cfg.MODEL.KD.HEADS:
            model.KD.pop(name.upper(), None)
    return used


def wrap_student(cfg: CfgNode) -> None:
    """Make a detector's config that of a distiller, in place, if it is to be taught.

    That is if it names heads, or lets a teacher assign, but names no student.

    So that heads and a teacher are all that must be added to a config which trains a detector. One
    with ``MODEL.KD.STUDENT`` is left alone: its META_ARCHITECTURE was set back on purpose.

    >>> from kd_d2.config import get_kd_cfg
    >>> cfg = get_kd_cfg()
    >>> cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.HEADS = "RetinaNet", ["PKD"]
    >>> wrap_student(cfg)
    >>> cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.STUDENT, cfg.MODEL.KD.TEACHER.NAME
    ('FrozenTeacherDistiller', 'RetinaNet', 'Frozen')
    """
    model, kd = cfg.MODEL, cfg.MODEL.KD
    teacher = kd.TEACHER.NAME or "Frozen"
    taught = kd.HEADS or shares_labels(cfg)
    if is_distiller(cfg) or kd.STUDENT or not taught or teacher not in DISTILLER_OF:
        return
    kd.STUDENT, kd.TEACHER.NAME = model.META_ARCHITECTURE, teacher
    model.META_ARCHITECTURE = DISTILLER_OF[teacher]
