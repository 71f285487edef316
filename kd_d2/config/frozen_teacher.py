"""Checks of a frozen teacher: its config, its weights' name, its classes."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from kd_d2.config.detector import check_backbone, check_detector
from kd_d2.config.names import check_known
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.config.teacher import load_teacher_cfg, teacher_weights
from kd_d2.config.values import VALUES

__all__ = ["check_frozen_teacher", "class_map"]


def check_frozen_teacher(cfg: CfgNode) -> None:
    """Check that the teacher's config can be built, has weights and knows the student's classes.

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
    arch = teacher_cfg.MODEL.META_ARCHITECTURE
    where = f"of the teacher's config {node.CONFIG_FILE}, "
    check_known(f"META_ARCHITECTURE ({where}MODEL.META_ARCHITECTURE)", arch, META_ARCH_REGISTRY)
    check_backbone(teacher_cfg, where)
    try:
        check_values(teacher_cfg, {k: VALUES[k] for k in VALUES if k.startswith("MODEL")})
        check_detector(teacher_cfg, arch)
    except ConfigError as e:
        raise ConfigError(f"The teacher's config {node.CONFIG_FILE}: {e}") from None
    _check_number_of_classes(node, teacher_cfg)
    if not teacher_weights(cfg):
        raise ConfigError(
            "MODEL.KD.TEACHER.WEIGHTS is empty and its config is not the model zoo's: give the "
            "teacher's weights (a file, https:// or detectron2://)."
        )
    teacher = list(node.CLASSES) or _class_names(teacher_cfg)
    student = _class_names(cfg)
    if node.REQUIRE_SAME_CLASSES and teacher and student:
        class_map(student, teacher)


def _check_number_of_classes(node: CfgNode, teacher_cfg: CfgNode) -> None:
    arch = teacher_cfg.MODEL.META_ARCHITECTURE
    key = {"GeneralizedRCNN": "ROI_HEADS"}.get(arch, arch.upper())
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
