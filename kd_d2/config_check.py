"""Checks of a finished config, before anything heavy starts."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils.logger import log_first_n

from kd_d2.config_levels import check_levels
from kd_d2.config_names import check_known, check_parts
from kd_d2.config_rules import ConfigError, check_values
from kd_d2.config_values import VALUES
from kd_d2.model_zoo import check_weights_name
from kd_d2.modeling.backbones import check_swin_config
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.phases import phase_length
from kd_d2.modeling.teachers import TEACHER_REGISTRY
from kd_d2.projects import check_project_configs
from kd_d2.student_config import DISTILLERS, is_distiller
from kd_d2.teacher_config import load_teacher_cfg, teacher_weights

__all__ = ["ConfigError", "check_config", "check_phase", "class_map", "warn_once"]

logger = logging.getLogger(__name__)

_RESNET_DEPTHS = (18, 34, 50, 101, 152)  # that Detectron2's ResNets know


def check_config(cfg: CfgNode) -> None:
    """Checks names, values and combinations of a whole config; plain configs too.

    Raises:
        ConfigError: with one sentence on the first thing that is wrong.
        FileNotFoundError: if a teacher's config or weights are missing.
        ZooError: if MODEL.WEIGHTS or the teacher's name a file that the model zoo has not.
    """
    arch = cfg.MODEL.META_ARCHITECTURE
    check_values(cfg, VALUES)
    check_known("META_ARCHITECTURE (MODEL.META_ARCHITECTURE)", arch, META_ARCH_REGISTRY)
    _check_backbone(cfg)
    _check_solver(cfg)
    check_weights_name(cfg.MODEL.WEIGHTS)
    if not is_distiller(cfg):
        _check_detector(cfg, arch)
        return
    kd = cfg.MODEL.KD
    if not kd.STUDENT:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {arch} but MODEL.KD.STUDENT is empty: set it to the "
            "student's META_ARCHITECTURE, e.g. RetinaNet."
        )
    if kd.STUDENT in DISTILLERS:
        raise ConfigError(f"MODEL.KD.STUDENT must be a detector, and {kd.STUDENT} is a distiller.")
    check_known("student (MODEL.KD.STUDENT)", kd.STUDENT, META_ARCH_REGISTRY, DISTILLERS)
    _check_detector(cfg, kd.STUDENT)
    if not kd.ENABLED:
        return
    if not kd.TEACHER.NAME:
        raise ConfigError(
            "MODEL.KD.TEACHER.NAME is empty: choose a teacher "
            f"({', '.join(sorted(k for k, _ in TEACHER_REGISTRY))}), or set MODEL.KD.ENABLED "
            "False to train the student plainly."
        )
    check_known(TEACHER_REGISTRY.kind, kd.TEACHER.NAME, TEACHER_REGISTRY)
    if not isinstance(kd.HEADS, list | tuple):
        example = kd.HEADS if isinstance(kd.HEADS, str) else "PKD"
        raise ConfigError(f'MODEL.KD.HEADS must be a list, e.g. ["{example}"].')
    for head in kd.HEADS:
        if not isinstance(head, str):
            raise ConfigError(f'MODEL.KD.HEADS must hold names, e.g. ["PKD"], and has {head!r}.')
        check_known(DISTILL_HEAD_REGISTRY.kind, head, DISTILL_HEAD_REGISTRY)
    _check_heads(cfg)
    _check_combination(cfg)
    _check_freezing(cfg)
    if kd.TEACHER.NAME == "Frozen":
        _check_frozen_teacher(cfg)
    check_project_configs(cfg)


def warn_once(message: str) -> None:
    """Warn of what works but is hardly meant; a config is checked several times in a run.

    Not before logging is set up: it would not be in the run's log.
    """
    if logger.hasHandlers():
        log_first_n(logging.WARNING, message, name=__name__, key="message")


def check_phase(key: str, value: int | float | None, max_iter: int) -> int:
    """:func:`phase_length` of the value of a key.

    Raises:
        ConfigError: it is no length; names the key.
    """
    try:
        return phase_length(value, max_iter)
    except OverflowError:
        raise ConfigError(f"{key} is {value!r}; it must be finite.") from None
    except ValueError as e:
        raise ConfigError(f"{key}: {e}") from None


def _check_freezing(cfg: CfgNode) -> None:
    max_iter = cfg.SOLVER.MAX_ITER
    length = check_phase("MODEL.KD.FREEZE_BACKBONE", cfg.MODEL.KD.FREEZE_BACKBONE, max_iter)
    if length >= max_iter:
        warn_once(
            f"MODEL.KD.FREEZE_BACKBONE freezes the backbone for {length} iterations, and there are "
            f"{max_iter} (SOLVER.MAX_ITER): it will not be trained at all."
        )


def _check_heads(cfg: CfgNode) -> None:
    heads = list(cfg.MODEL.KD.HEADS)
    twice = sorted({head for head in heads if heads.count(head) > 1})
    if twice:
        raise ConfigError(
            f"MODEL.KD.HEADS names {', '.join(twice)} more than once; it counts once."
        )
    if not heads and cfg.MODEL.META_ARCHITECTURE == "FrozenTeacherDistiller":
        raise ConfigError(
            "MODEL.KD.HEADS is empty, so the frozen teacher would teach nothing: name one "
            f"or more of {', '.join(sorted(k for k, _ in DISTILL_HEAD_REGISTRY))}, or set "
            "MODEL.KD.ENABLED False to train the student plainly."
        )


def _check_backbone(cfg: CfgNode, where: str = "") -> None:
    name, depth = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.DEPTH
    check_known(f"backbone ({where}MODEL.BACKBONE.NAME)", name, BACKBONE_REGISTRY)
    if "resnet" in name and depth not in _RESNET_DEPTHS:
        raise ConfigError(
            f"{where}MODEL.RESNETS.DEPTH is {depth}; it must be one of "
            f"{', '.join(map(str, _RESNET_DEPTHS))}."
        )
    if "swin" in name:
        try:
            check_swin_config(cfg)
        except ValueError as e:
            raise ConfigError(f"{where}{e}") from None


def _check_detector(cfg: CfgNode, arch: str) -> None:
    check_parts(cfg, arch)
    check_levels(cfg, arch)


def _check_solver(cfg: CfgNode) -> None:
    solver, sizes = cfg.SOLVER, cfg.INPUT.MIN_SIZE_TRAIN
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and solver.BASE_LR <= 0:
        raise ConfigError(
            "SOLVER.BASE_LR must be above 0 with SOLVER.LR_SCHEDULER_NAME WarmupCosineLR."
        )
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; with INPUT.MIN_SIZE_TRAIN_SAMPLING range it must be "
            "the least and the largest size, e.g. (640, 800)."
        )


def _check_combination(cfg: CfgNode) -> None:
    """A frozen teacher has no head to share, and a label encoder nothing else to learn from."""
    arch, teacher = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.TEACHER.NAME
    if (arch == "FrozenTeacherDistiller") != (teacher == "Frozen") and teacher in (
        "Frozen",
        "LabelEncoder",
    ):
        right = "FrozenTeacherDistiller" if teacher == "Frozen" else "LabelGuidedDistiller"
        raise ConfigError(
            f"Teacher {teacher!r} works in a {right}, and MODEL.META_ARCHITECTURE is {arch}: "
            f"set it to {right}, or choose another MODEL.KD.TEACHER.NAME."
        )


def _check_frozen_teacher(cfg: CfgNode) -> None:
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
    _check_backbone(teacher_cfg, where)
    try:
        check_values(teacher_cfg, {k: VALUES[k] for k in VALUES if k.startswith("MODEL")})
        _check_detector(teacher_cfg, arch)
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
