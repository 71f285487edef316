"""Checks of a finished config, before anything heavy starts."""

import logging

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.logger import log_first_n

from kd_d2.config.detector import check_backbone, check_detector
from kd_d2.config.frozen_teacher import check_frozen_teacher, check_peer
from kd_d2.config.names import check_known
from kd_d2.config.rules import ConfigError, check_values
from kd_d2.config.student import DISTILLER_OF, DISTILLERS, is_distiller
from kd_d2.config.values import VALUES
from kd_d2.model_zoo import check_weights_name
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.head_weights import HeadWeight
from kd_d2.modeling.phases import phase_length
from kd_d2.modeling.stages import UnknownFamilyError, check_trains_by_stages
from kd_d2.modeling.teachers import TEACHER_REGISTRY
from kd_d2.projects import check_project_configs

__all__ = ["check_config", "check_phase", "warn_once"]

logger = logging.getLogger(__name__)


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
    check_backbone(cfg)
    _check_solver(cfg)
    _check_dataset_shares(cfg)
    check_weights_name(cfg.MODEL.WEIGHTS)
    if not is_distiller(cfg):
        check_detector(cfg, arch)
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
    check_detector(cfg, kd.STUDENT)
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
    _check_stages(cfg)
    _check_heads(cfg)
    _check_combination(cfg)
    _check_freezing(cfg)
    if kd.TEACHER.NAME == "Frozen":
        if check_frozen_teacher(cfg) is None and kd.TEACHER.REQUIRE_SAME_CLASSES:
            warn_once(
                "The classes of the frozen teacher or of the student have no names yet, so heads "
                "that compare classes do so by their numbers: make sure that the order is the "
                "same, or name the teacher's in MODEL.KD.TEACHER.CLASSES."
            )
    else:
        _check_nobody_frozen(cfg)
    if kd.TEACHER.NAME == "Peer":
        check_peer(cfg)
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


def _check_stages(cfg: CfgNode) -> None:
    """Whether the student's family is known, and trains by its stages alone."""
    kd, proposals = cfg.MODEL.KD, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    student = kd.STUDENT
    try:
        check_trains_by_stages(META_ARCH_REGISTRY.get(student))
    except UnknownFamilyError as e:
        raise ConfigError(f"MODEL.KD.STUDENT {student} cannot be distilled: {e}") from None
    if student != "GeneralizedRCNN":
        return
    if proposals == "PrecomputedProposals":
        raise ConfigError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, and a student must make its "
            "own: set it to RPN."
        )
    readers = [x for x in kd.HEADS if getattr(DISTILL_HEAD_REGISTRY.get(x), "reads_boxes", False)]
    readers += ["LabelEncoder"] if kd.TEACHER.NAME == "LabelEncoder" else []
    if proposals == "RRPN" and readers:
        raise ConfigError(
            f"MODEL.PROPOSAL_GENERATOR.NAME is RRPN, whose boxes are rotated, and "
            f"{', '.join(readers)} (MODEL.KD) reads upright ones: take a frozen teacher and a head "
            "such as PKD."
        )


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
    weights = cfg.MODEL.KD.HEAD_WEIGHTS
    if weights and len(weights) != len(heads):
        raise ConfigError(
            f"MODEL.KD.HEAD_WEIGHTS has {len(weights)} entries, and MODEL.KD.HEADS {len(heads)}: "
            "give one for each head, in the same order, or none."
        )
    for weight in weights:
        try:
            HeadWeight(weight, cfg.SOLVER.MAX_ITER)
        except ValueError as e:
            raise ConfigError(str(e)) from None
    kd = cfg.MODEL.KD
    if not kd.LABEL_LOSSES and not any(
        getattr(DISTILL_HEAD_REGISTRY.get(x), "compares_classes", False) for x in heads
    ):
        raise ConfigError(
            "MODEL.KD.LABEL_LOSSES is False, and no head of MODEL.KD.HEADS teaches the student "
            "what to predict: name one that compares predictions, e.g. FocalSoftLabel, or set it "
            "True."
        )
    taught = heads or kd.ASSIGN_BY == "teacher"
    if not taught and cfg.MODEL.META_ARCHITECTURE == "FrozenTeacherDistiller":
        raise ConfigError(
            "MODEL.KD.HEADS is empty, so the frozen teacher would teach nothing: name one "
            f"or more of {', '.join(sorted(k for k, _ in DISTILL_HEAD_REGISTRY))}, let it assign "
            "(MODEL.KD.ASSIGN_BY teacher), or set MODEL.KD.ENABLED False to train the student "
            "plainly."
        )


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


def _check_dataset_shares(cfg: CfgNode) -> None:
    shares, names = cfg.DATALOADER.DATASET_SHARES, tuple(cfg.DATASETS.TRAIN)
    if not shares:
        return
    if len(shares) != len(names):
        raise ConfigError(
            f"DATALOADER.DATASET_SHARES has {len(shares)} entries, and DATASETS.TRAIN {len(names)} "
            f"({', '.join(names)}): give one for each data set, in the same order, or none."
        )
    # three thirds may be given as 0.333
    if abs(sum(shares) - 1) > 2e-3:
        raise ConfigError(
            f"DATALOADER.DATASET_SHARES {list(shares)} add up to {sum(shares):g}: they must add up "
            "to 1."
        )
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler != "TrainingSampler":
        raise ConfigError(
            f"DATALOADER.DATASET_SHARES decides how images are drawn, and so does "
            f"DATALOADER.SAMPLER_TRAIN {sampler}: set that to TrainingSampler, or give no shares."
        )


def _check_nobody_frozen(cfg: CfgNode) -> None:
    kd = cfg.MODEL.KD
    for key, value in (("INHERIT", []), ("ASSIGN_BY", "student"), ("LABEL_LOSSES", True)):
        if kd[key] != value:
            raise ConfigError(
                f"MODEL.KD.{key} is {kd[key]!r}, which needs a frozen teacher, and "
                f"MODEL.KD.TEACHER.NAME is {kd.TEACHER.NAME}: leave it {value!r}."
            )


def _check_combination(cfg: CfgNode) -> None:
    """A frozen teacher has no head to share, and a label encoder nothing else to learn from."""
    arch, teacher = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KD.TEACHER.NAME
    right = DISTILLER_OF.get(teacher, arch)
    if arch != right:
        raise ConfigError(
            f"Teacher {teacher!r} works in a {right}, and MODEL.META_ARCHITECTURE is {arch}: "
            f"set it to {right}, or choose another MODEL.KD.TEACHER.NAME."
        )
