"""The config node of LGD, and the check of its values."""

from detectron2.config import CfgNode as CN

from kd_d2.config.check import check_phase, warn_once
from kd_d2.config.rules import ConfigError, Rule, check_values, number, one_of, truth

from .descriptors import LABEL_FORMATS
from .label_encoder import ENCODERS
from .relation import INTERACT_PATTERNS


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


_VALUES = {
    "ENCODER": one_of(*ENCODERS),
    "LABEL_FORMAT": one_of(*LABEL_FORMATS),
    "ADD_CONTEXT_BOX": truth,
    "DETACH_APPEARANCE_EMBED": truth,
    "INTERACT_PATTERN": one_of(*INTERACT_PATTERNS),
    "NUM_HEADS": Rule(
        lambda x: type(x) is int and x > 0,
        "a positive whole number that divides the number of feature channels",
    ),
    "LAMBDA": number(least=0),
    "LOAD_LABELMAP": truth,
}


def check_lgd_config(cfg: CN) -> None:
    """Checks ``MODEL.KD.LGD`` of a finished config.

    Raises:
        ConfigError: with one sentence on the first wrong value.
    """
    check_values(cfg, {"MODEL.KD.LGD": _VALUES})
    lgd = cfg.MODEL.KD.LGD
    if cfg.MODEL.KD.TEACHER.NAME == "LabelEncoder" and not cfg.MODEL.KD.HEADS:
        warn_once(
            "MODEL.KD.HEADS is empty: the student learns from the label encoder through the shared "
            "head alone, without a distillation loss. LGD's is InstructiveFeatures."
        )
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
    if lgd.PRE_NONDISTILL != "auto":
        check_phase("MODEL.KD.LGD.PRE_NONDISTILL", lgd.PRE_NONDISTILL, cfg.SOLVER.MAX_ITER)
    check_phase("MODEL.KD.LGD.POST_NONDISTILL", lgd.POST_NONDISTILL, cfg.SOLVER.MAX_ITER)
