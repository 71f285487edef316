"""Every key that kd_d2 adds to Detectron2's config, each with its comment.

A method's own node is added by its project, see ``projects/*/*/config.py``; the nodes of single
heads are in ``kd_d2/modeling/heads/config.py``.
"""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg


def add_kd_config(cfg: CN) -> None:
    """Adds all keys of kd_d2 and its projects to a Detectron2 config, in place."""
    from kd_d2.modeling.backbones import add_backbone_config
    from kd_d2.modeling.detectors import add_detector_configs
    from kd_d2.modeling.heads import add_head_config
    from kd_d2.modeling.regions import add_region_config
    from kd_d2.projects import add_project_configs

    _add_distillation(cfg)
    _add_solver(cfg)
    _add_data(cfg)
    add_backbone_config(cfg)
    add_detector_configs(cfg)
    add_head_config(cfg)
    add_region_config(cfg)
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
    # Factors of the heads' losses, one for each of HEADS, besides the weights in their own nodes: a
    # number, or points (share of the schedule, factor) with straight lines between them: a warm-up
    # over the first tenth is [[0.0, 0.0], [0.1, 1.0]], an end after nine tenths [[0.9, 1.0],
    # [0.9, 0.0]]. Empty: 1 for all.
    kd.HEAD_WEIGHTS = []
    # Who says which anchors of the student learn which object: "student" (as without distillation),
    # or "teacher" (LAD): a frozen detector with the same anchors, which assigns by its predictions
    # (PAA, DDOD) or by rules of its own. Students: PAA, ATSS, DDOD, a RetinaNet with such anchors.
    kd.ASSIGN_BY = "student"
    # False: the student learns from the heads alone, not from the labels.
    kd.LABEL_LOSSES = True
    # Parts of a frozen teacher that the student begins with: "neck" (the feature pyramid), "head"
    # (all besides the backbone), both or none. What does not fit keeps its own initial values. Of
    # R-CNNs also "box_head" (with its predictor) and "rpn", which must fit whole.
    kd.INHERIT = []
    # Before training, let a frozen teacher detect the objects in so many images of the training
    # data, and refuse to start if it finds next to nothing, as with weights of another config,
    # swapped colours or another order of classes. 0: no such check.
    kd.CHECK_TEACHER = 8
    # In the first so many iterations, log each loss's share in the gradient of the student's
    # features: whether a distillation loss is lost beside the detection losses, or drowns them.
    kd.LOG_GRADIENT_SHARES = 3
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
    # A name in TEACHER_REGISTRY: "Frozen" (any trained detector), "LabelEncoder" (LGD), "Peer" (a
    # detector that is trained beside the student, CoLAD).
    teacher.NAME = ""
    # Frozen: the teacher's config, a file, a name in Detectron2's model zoo such as
    # "COCO-Detection/retinanet_R_101_FPN_3x.yaml", or one in ours such as
    # "kd_d2://coco/faster_rcnn_x101_3x". It is never merged with the student's. Peer: likewise, or
    # empty for a second network of the student's config.
    teacher.CONFIG_FILE = ""
    # Frozen: its weights (file, https://, detectron2://). Empty with a config of a zoo: its own.
    # Peer: what it begins with. Empty: the MODEL.WEIGHTS of its config.
    teacher.WEIGHTS = ""
    # Frozen: accept a file that does not fill the whole teacher. Off, because a teacher that is
    # half at random teaches noise, silently.
    teacher.ALLOW_PARTIAL_WEIGHTS = False
    # Frozen: keep its images and convolutions in channels-last memory, which is faster on GPUs in
    # half precision; and compile its backbone with torch.compile (a minute or more at the start).
    teacher.CHANNELS_LAST = False
    teacher.COMPILE = False
    # Frozen: its class names in the order of its outputs. Empty: those of its training data set.
    # Peer: those of WEIGHTS, as MODEL.WEIGHTS_CLASSES are those of MODEL.WEIGHTS.
    teacher.CLASSES = []
    # Frozen: refuse a teacher that does not know the student's classes by name. Set False for
    # heads that read features only, when the teacher was trained on another data set.
    teacher.REQUIRE_SAME_CLASSES = True


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
    # The classes of MODEL.WEIGHTS in the order of its outputs. What the classifier has learned of
    # classes that the training data have, too, goes to them by name; others begin anew. Empty: the
    # order is the same.
    cfg.MODEL.WEIGHTS_CLASSES = []

    # What a training makes of labels that a detector has made (others weigh 1), and of images whose
    # labels are not of all classes.
    weights = cfg.MODEL.LABEL_WEIGHTS = CN()
    # Count each box by its "weight" in the annotations.
    weights.ENABLED = False
    # Weighted losses are divided by the "count" of boxes or regions, as without weights; or by the
    # "weight_sum" of the positives (of R-CNNs' class losses: of all sampled anchors or regions, as
    # background weighs 1), which changes the effective learning rate.
    weights.NORMALIZE = "count"
    # Which boxes of a detector train the box losses: "all"; "reliable", those that it found in the
    # mirrored image, too ("box_agreement" in the annotations), with at least this IoU; "none".
    # AutoAssign has one loss of classes and boxes, which judges the others by their class alone.
    weights.BOX_LOSS = "all"
    weights.LEAST_AGREEMENT = 0.7
    # Leave background out that lies on what may be an object ("ignore" in the annotations), by so
    # much of the anchor's or region's own area. False: such annotations are passed over.
    weights.IGNORE = False
    weights.IGNORE_OVERLAP = 0.5
    # Background does not learn the classes that nobody has looked for on its image: those that are
    # not among the "covered_classes" of its record (contiguous ids; absent: all were looked for).
    # The classes must be independent, so R-CNNs need MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE.
    weights.COVERED = False

    # After the usual augmentations, change the colours of training images, blur them and erase
    # rectangles, as Unbiased Teacher does for its student: for labels that a teacher has made on
    # unaltered images. A frozen teacher in the same training gets the images that its student gets.
    cfg.INPUT.STRONG_AUGMENTATION = False

    # Share of each of DATASETS.TRAIN in the images that are drawn, in their order, e.g.
    # [0.75, 0.25]; they must add up to 1. Empty: by their sizes.
    cfg.DATALOADER.DATASET_SHARES = []
    # An image of the training set that cannot be read: "raise" stops with its name; "skip" logs it
    # once and trains on another image instead (up to 100 files).
    cfg.DATALOADER.ON_BAD_IMAGE = "raise"
    # Evaluate by CrowdHuman's metrics, too (AP, MR^-2, JI; task "crowd"), whatever the test set.
    cfg.TEST.CROWD_METRICS = False
