"""The config node of LGD, and the check of its values."""

from detectron2.config import CfgNode as CN

from kd_d2.config_check import ConfigError
from kd_d2.modeling.phases import phase_length

from .descriptors import LABEL_FORMATS
from .label_encoder import ENCODERS
from .relation import INTERACT_PATTERNS
from .schedule import distillation_starts_after


def add_lgd_config(cfg: CN) -> None:
    """Adds ``MODEL.KD.LGD`` to a config that has ``MODEL.KD``, in place."""
    lgd = cfg.MODEL.KD.LGD = CN()
    # Network that turns label descriptors into embeddings: "PointNet" (the paper's), or "MLP"
    # (ours: every object by itself; learns its classes in far fewer iterations).
    lgd.ENCODER = "PointNet"
    # How a class enters a descriptor: "one_hot", or "norm_classes" (the single number class / K).
    lgd.LABEL_FORMAT = "one_hot"
    # Add to each image with objects one box over the whole canvas, whose embedding is spread over
    # all cells. Without it, cells outside all objects carry no knowledge of the labels.
    lgd.ADD_CONTEXT_BOX = True
    # Keep the teacher's losses out of the student's backbone and feature pyramid. The paper's
    # settings: False for one-stage students, True for R-CNNs.
    lgd.DETACH_APPEARANCE_EMBED = False
    # Who asks whom in the attention between objects: "stuGuided" (appearance asks labels, the
    # paper's choice), "labelGuided" (labels ask appearance), or no attention at all: only
    # appearance ("student_fill") or only labels ("teacher_fill").
    lgd.INTERACT_PATTERN = "stuGuided"
    # Heads of that attention; must divide the number of feature channels.
    lgd.NUM_HEADS = 8
    # Weight of the distillation loss. 0 leaves the teacher's losses through the shared head: the
    # control that tells where a gain comes from.
    lgd.LAMBDA = 1.0
    # Start of distillation: an iteration, a fraction (below 1) of the schedule, or "auto" (ours:
    # once the teacher classifies better than the student, and has done so for a while). Before,
    # the adapter alone learns from the distillation loss. None: the paper's 30k of 180k, 1/6.
    lgd.PRE_NONDISTILL = None
    # Distillation ends so many iterations, or this fraction of the schedule, before the end.
    # None: never. The paper uses 50k of 180k for its largest backbones.
    lgd.POST_NONDISTILL = None
    # Describe objects by their masks too (Mask R-CNN): object regions are the annotated masks
    # instead of the boxes, and the descriptor gets a 7x7 picture of the mask.
    lgd.LOAD_LABELMAP = False


def check_lgd_config(cfg: CN) -> None:
    """Checks ``MODEL.KD.LGD`` of a finished config.

    Raises:
        ConfigError: with one sentence on the first wrong value.
    """
    lgd = cfg.MODEL.KD.LGD
    for key, options in (
        ("ENCODER", tuple(ENCODERS)),
        ("LABEL_FORMAT", LABEL_FORMATS),
        ("INTERACT_PATTERN", INTERACT_PATTERNS),
    ):
        if lgd[key] not in options:
            raise ConfigError(
                f"MODEL.KD.LGD.{key} is {lgd[key]!r}; it must be one of {', '.join(options)}."
            )
    if not isinstance(lgd.NUM_HEADS, int) or lgd.NUM_HEADS < 1:
        raise ConfigError(
            f"MODEL.KD.LGD.NUM_HEADS is {lgd.NUM_HEADS!r}; it must be a positive whole number "
            "that divides the number of feature channels."
        )
    if lgd.LAMBDA < 0:
        raise ConfigError(f"MODEL.KD.LGD.LAMBDA is {lgd.LAMBDA}; it must be 0 or more.")
    if lgd.LOAD_LABELMAP and not cfg.MODEL.MASK_ON:
        raise ConfigError(
            "MODEL.KD.LGD.LOAD_LABELMAP reads the annotated masks, which are only loaded with "
            "MODEL.MASK_ON True: set that, or LOAD_LABELMAP False."
        )
    if isinstance(lgd.PRE_NONDISTILL, str) and lgd.PRE_NONDISTILL != "auto":
        raise ConfigError(
            f"MODEL.KD.LGD.PRE_NONDISTILL is {lgd.PRE_NONDISTILL!r}; it must be a number of "
            'iterations, a fraction below 1, "auto", or None for the paper\'s sixth.'
        )
    try:
        if lgd.PRE_NONDISTILL != "auto":
            distillation_starts_after(lgd.PRE_NONDISTILL, cfg.SOLVER.MAX_ITER)
    except ValueError as e:
        raise ConfigError(f"MODEL.KD.LGD.PRE_NONDISTILL: {e}") from None
    try:
        phase_length(lgd.POST_NONDISTILL, cfg.SOLVER.MAX_ITER)
    except ValueError as e:
        raise ConfigError(f"MODEL.KD.LGD.POST_NONDISTILL: {e}") from None
