"""Every key that kd_d2 adds to Detectron2's config, each with its comment.

A method's own node is added by its project; see ``projects/*/*/config.py``.
"""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg


def add_kd_config(cfg: CN) -> None:
    """Adds all keys of kd_d2 and its projects to a Detectron2 config, in place."""
    from kd_d2.modeling.backbones import add_backbone_config
    from kd_d2.modeling.detectors import add_atss_config, add_fcos_config
    from kd_d2.projects import add_project_configs

    _add_distillation(cfg)
    _add_solver(cfg)
    _add_data(cfg)
    add_backbone_config(cfg)
    add_fcos_config(cfg)
    add_atss_config(cfg)
    add_project_configs(cfg)


def get_kd_cfg() -> CN:
    """Detectron2's default config with all keys of kd_d2."""
    cfg = get_cfg()
    add_kd_config(cfg)
    return cfg


def _add_distillation(cfg: CN) -> None:
    kd = cfg.MODEL.KD = CN()
    # False trains the student plainly, from the same file: the baseline of the same config.
    kd.ENABLED = True
    # The student's META_ARCHITECTURE, e.g. "RetinaNet", "FCOS", "GeneralizedRCNN". Everything else
    # under MODEL configures it as usual.
    kd.STUDENT = ""
    # Names in DISTILL_HEAD_REGISTRY. Their losses add up.
    kd.HEADS = []
    # Evaluate the teacher too, each time the student is evaluated. A label encoder then reads the
    # labels of the test set: an upper bound and a diagnosis, never a result.
    kd.EVAL_TEACHER = False
    # Compute of a head what the losses read, where that saves time: RetinaNet's box tower around
    # the positive anchors (heads that look at predictions switch it off), and the backward pass of
    # an RPN in the cells of the sampled anchors. Losses and gradients are the same but for float
    # rounding.
    kd.SKIP_UNUSED_CELLS = True
    # At the start of training, keep the student's raw backbone (without its feature pyramid) as
    # it is for so many iterations, or for this fraction (below 1) of the schedule. None: never.
    kd.FREEZE_BACKBONE = None

    teacher = kd.TEACHER = CN()
    # A name in TEACHER_REGISTRY: "Frozen" (any trained detector), "LabelEncoder" (LGD).
    teacher.NAME = ""
    # Frozen: the teacher's config, a file or a name in Detectron2's model zoo such as
    # "COCO-Detection/retinanet_R_101_FPN_3x.yaml". It is never merged with the student's.
    teacher.CONFIG_FILE = ""
    # Frozen: its weights (file, https://, detectron2://). Empty with a zoo config: the zoo's own.
    teacher.WEIGHTS = ""
    # Frozen: accept a file that does not fill the whole teacher. Off, because a teacher that is
    # half at random teaches noise, silently.
    teacher.ALLOW_PARTIAL_WEIGHTS = False
    # Frozen: its class names in the order of its outputs. Empty: those of its training data set.
    teacher.CLASSES = []
    # Frozen: refuse a teacher that does not know the student's classes by name. Set False for
    # heads that read features only, when the teacher was trained on another data set.
    teacher.REQUIRE_SAME_CLASSES = True

    pkd = kd.PKD = CN()
    # Factor of the loss. The paper uses 6 for two-stage and 10 for one-stage students.
    pkd.WEIGHT = 10.0
    # A learned 1x1 convolution on the student's features, for unequal channel counts.
    pkd.ADAPTER = False


def _add_solver(cfg: CN) -> None:
    # "SGD" or "AdamW" (betas 0.9 and 0.999).
    cfg.SOLVER.OPTIMIZER = "SGD"
    # "float16" (with loss scaling, GPU only) or "bfloat16", when SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "float16"

    # The solver of a trainable teacher's parameters. Empty or None: the student's value above.
    teacher = cfg.SOLVER.TEACHER = CN()
    teacher.OPTIMIZER = ""
    teacher.BASE_LR = None
    teacher.WEIGHT_DECAY = None
    teacher.MOMENTUM = None
    teacher.STEPS = None
    teacher.GAMMA = None
    teacher.WARMUP_ITERS = None
    teacher.WARMUP_FACTOR = None


def _add_data(cfg: CN) -> None:
    # An image of the training set that cannot be read: "raise" stops with its name; "skip" logs it
    # once and trains on another image instead (up to 100 files).
    cfg.DATALOADER.ON_BAD_IMAGE = "raise"
