"""Checks of a frozen teacher: its config, its weights' name, its classes."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from kd_d2.config.detector import check_backbone, check_detector
from kd_d2.config.names import check_known, detector_node
from kd_d2.config.peer import peer_config
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.config.teacher import load_teacher_cfg, teacher_weights
from kd_d2.config.values import VALUES
from kd_d2.model_zoo import check_weights_name
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY

__all__ = ["check_frozen_teacher", "check_peer", "class_map", "teacher_class_map"]


def check_frozen_teacher(cfg: CfgNode) -> list[int] | None:
    """Check that the teacher's config can be built, has weights and knows the student's classes.

    Returns:
        its number of each of the student's classes, see :func:`teacher_class_map`.

    Raises:
        ConfigError: with one sentence on the first thing that is wrong.
        FileNotFoundError: the teacher's config or weights are missing.
    """
    node = cfg.MODEL.KD.TEACHER
    if not node.CONFIG_FILE:
        raise ConfigError(
            "MODEL.KD.TEACHER.CONFIG_FILE is empty: give the frozen teacher's config, a file or a "
            "name in Detectron2's model zoo such as COCO-Detection/retinanet_R_101_FPN_3x.yaml."
        )
    teacher_cfg = load_teacher_cfg(cfg)
    _check_own(cfg, teacher_cfg)
    _check_number_of_classes(node, teacher_cfg)
    if not teacher_weights(cfg):
        raise ConfigError(
            "MODEL.KD.TEACHER.WEIGHTS is empty and its config is not the model zoo's: give the "
            "teacher's weights (a file, https:// or detectron2://)."
        )
    classes = teacher_class_map(cfg, teacher_cfg)
    by_class = [part for part in cfg.MODEL.KD.INHERIT if part in ("head", "box_head")]
    if by_class and classes and classes != sorted(classes):
        raise ConfigError(
            f"MODEL.KD.INHERIT has {by_class[0]}, and the teacher has the student's classes in "
            "another order: leave it out, or bring the student's classes into the teacher's order."
        )
    return classes


def check_peer(cfg: CfgNode) -> None:
    """Check that the config of a student's peer can be built.

    Raises:
        ConfigError: with one sentence on the first thing that is wrong.
        FileNotFoundError: its config or weights are missing.
    """
    peer = peer_config(cfg)
    if cfg.MODEL.KD.TEACHER.CONFIG_FILE:
        _check_own(cfg, peer)
    check_weights_name(peer.MODEL.WEIGHTS)


def _check_own(cfg: CfgNode, teacher_cfg: CfgNode) -> None:
    """Whether the teacher's detector can be built, and can read the student's images."""
    node = cfg.MODEL.KD.TEACHER
    arch = teacher_cfg.MODEL.META_ARCHITECTURE
    try:
        check_known("META_ARCHITECTURE (MODEL.META_ARCHITECTURE)", arch, META_ARCH_REGISTRY)
        check_backbone(teacher_cfg)
        check_values(teacher_cfg, {k: VALUES[k] for k in VALUES if k.startswith("MODEL")})
        check_detector(teacher_cfg, arch)
    except ConfigError as e:
        raise ConfigError(f"The teacher's config {node.CONFIG_FILE}: {e}") from None
    formats = {cfg.INPUT.FORMAT, teacher_cfg.INPUT.FORMAT}
    if len(formats) == 2 and formats != {"RGB", "BGR"}:
        raise ConfigError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, and {teacher_cfg.INPUT.FORMAT} in the teacher's "
            f"config {node.CONFIG_FILE}: they must be equal, or RGB and BGR."
        )


def teacher_class_map(cfg: CfgNode, teacher_cfg: CfgNode) -> list[int] | None:
    """The teacher's number of each of the student's classes.

    Returns:
        None where names are not known, or where one is strange to the teacher and may be.

    Raises:
        ConfigError: the teacher does not know one of them, and has to; or need not, but something
            compares class by class.
    """
    node = cfg.MODEL.KD.TEACHER
    teacher = list(node.CLASSES) or _class_names(teacher_cfg)
    student = _class_names(cfg)
    if not (teacher and student):
        return None
    if node.REQUIRE_SAME_CLASSES or set(student) <= set(teacher):
        return class_map(student, teacher)
    if readers := _class_readers(cfg):
        strange = [name for name in student if name not in teacher]
        raise ConfigError(
            f"{', '.join(readers)} (MODEL.KD) needs a teacher that knows the student's classes, "
            f"and this one ({_few(teacher)}) does not know {_few(strange)}: take heads that read "
            "features only, or name the teacher's classes in MODEL.KD.TEACHER.CLASSES if only the "
            "names differ."
        )
    return None


def _class_readers(cfg: CfgNode) -> list[str]:
    """What of a config makes use of the teacher's classes."""
    kd = cfg.MODEL.KD
    readers = [
        head
        for head in kd.HEADS
        if getattr(DISTILL_HEAD_REGISTRY.get(head), "compares_classes", False)
    ]
    readers += [f"INHERIT {part}" for part in kd.INHERIT if part != "neck"]
    return readers + ["ASSIGN_BY teacher"] * (kd.ASSIGN_BY == "teacher")


def _check_number_of_classes(node: CfgNode, teacher_cfg: CfgNode) -> None:
    arch = teacher_cfg.MODEL.META_ARCHITECTURE
    key = detector_node(arch)
    number = teacher_cfg.MODEL.get(key, {}).get("NUM_CLASSES")
    if node.CLASSES and number not in (None, len(node.CLASSES)):
        raise ConfigError(
            f"MODEL.KD.TEACHER.CLASSES has {len(node.CLASSES)} names, but the teacher has {number} "
            f"classes (MODEL.{key}.NUM_CLASSES of {node.CONFIG_FILE}): name each of its outputs."
        )


def _class_names(cfg: CfgNode) -> list[str]:
    """The class names of a config's training data set, empty where the data set is not known."""
    names = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST
    return list(MetadataCatalog.get(names[0]).get("thing_classes", [])) if names else []


def class_map(student: list[str], teacher: list[str]) -> list[int]:
    """Position in the teacher's class list of each of the student's classes, by name.

    Raises:
        ConfigError: if the teacher does not know one of them.

    >>> class_map(["cat", "dog"], ["dog", "bird", "cat"])
    [2, 0]
    """
    unknown = [name for name in student if name not in teacher]
    if unknown:
        raise ConfigError(
            f"The teacher ({len(teacher)} classes: {_few(teacher)}) does not know "
            f"{len(unknown)} of the student's {len(student)} classes: {_few(unknown)}. Name the "
            "teacher's classes in MODEL.KD.TEACHER.CLASSES if only the names differ; for heads "
            "that read features only, set MODEL.KD.TEACHER.REQUIRE_SAME_CLASSES False."
        )
    return [teacher.index(name) for name in student]


def _few(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
