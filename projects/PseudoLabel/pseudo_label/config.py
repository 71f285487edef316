"""The config node of trainings that begin with pseudo labels, and the checks of its values."""

import os

from detectron2.config import CfgNode as CN

from kd_d2.config.rules import (
    ConfigError,
    Rule,
    check_values,
    list_of,
    number,
    one_of,
    optional,
    share,
    text,
    truth,
    whole,
)

from .filters import RULES as FILTER_RULES
from .filters import FilterSettings
from .merge_settings import MODES, NEEDS_LABELS, MergeSettings
from .merging import SCORE_TYPES
from .relabeled import PREFIX as RELABELED
from .relabeled import WAYS
from .settings import RULES as GENERATE_RULES
from .settings import GenerateSettings
from .thresholds import THRESHOLD_MODES
from .trained_on import PREFIX as EXPORTED
from .weights import WEIGHT_MODES

B_IMAGES = ("unlabeled", "unlabeled+labeled", "labeled")
BASELINES = ("", "labels", "joint")
MISSING = (*WAYS, "drop")


def add_pseudo_label_config(cfg: CN) -> None:
    """Adds ``PSEUDO_LABEL`` to a config, in place."""
    node = cfg.PSEUDO_LABEL = CN()
    # With a teacher or more, train_net.py has teachers label images (phase A), trains the student
    # on these labels (B), and fine-tunes it on people's (C). Each is NAME=CONFIG or
    # NAME=CONFIG,WEIGHTS: a config file or a name in a model zoo, whose weights need not be given.
    # Without phase A the files are not opened.
    node.TEACHERS = []
    # NAME=FILE: what a teacher's classes are called, if not as it calls them itself.
    node.CLASS_MAPS = []
    # Images that nobody has labelled: folders, data sets (labels of theirs are not read), and lists
    # in COCO's format with the folder of their images, "FILE.json,FOLDER".
    node.UNLABELED = []
    # Data sets that people have labelled. Empty: there is no phase C.
    node.LABELED = []
    # What phase B sees: "unlabeled", "unlabeled+labeled" (people's labels stay hidden), "labeled".
    node.PHASE_B_IMAGES = "unlabeled+labeled"
    # The student's classes in the order of its outputs. Empty: as in DATASETS.TEST.
    node.CLASSES = []
    # Which phases are run.
    node.PHASES = ["A", "B", "C"]
    # Instead of B and C, a baseline with as many iterations as both together: "labels", people's
    # labels alone; "joint", people's and pseudo labels at once.
    node.BASELINE = ""
    # Folder of phase A, which several trainings may share. Empty: OUTPUT_DIR/labels.
    node.LABELS_DIR = ""
    # Leave uncertain boxes out in phase B; False: they are background.
    node.USE_IGNORE = True
    # Of the images; are noted in the labels.
    node.LICENCE = ""
    node.ORIGIN = ""

    default = GenerateSettings()
    generate = node.GENERATE = CN()
    generate.FLOOR = default.floor  # least score that is kept
    generate.TOPK = default.topk  # detections of an image
    generate.NMS = default.nms  # IoU of two boxes of a class. None, 0: the teacher's own
    generate.BATCH = default.batch  # images at once; changes scores a little
    generate.SIZE = default.size  # (shorter side, longest side) of images. None: the teacher's own
    generate.FLIP = default.flip  # look at mirrored images, too: tells reliable boxes
    # Test-time augmentation: shorter sides at which images are looked at instead of the test size;
    # what is found at all of them is united by NMS. Empty: the test size alone.
    generate.TTA_SIZES = default.tta_sizes
    generate.TTA_FLIP = default.tta_flip  # look at each size mirrored, too, and unite what is found
    generate.AMP = default.amp
    generate.SHARD_SIZE = default.shard_size  # images that are done or not as a whole
    generate.MAX_FAILED_SHARE = default.max_failed_share  # of unreadable images

    default = MergeSettings()
    merge = node.MERGE = CN()
    merge.MODE = default.mode  # of several teachers: "nms", "wbf", "vote"
    merge.IOU = default.iou  # None: the mode's own
    merge.SCORE_TYPE = default.score_type  # of wbf
    merge.MIN_VOTES = default.min_votes  # of vote
    # Which score a label needs: "global", "per_class_fbeta" and "per_class_count" (both by
    # THRESHOLD_LABELS), or "file".
    merge.THRESHOLDS = default.threshold_mode
    merge.THRESHOLD = default.threshold
    merge.BETA = default.beta  # of F-beta: precision counts 1 / BETA times as much as recall
    merge.LIMITS = default.limits  # least and largest threshold that is found by labels
    merge.THRESHOLD_FILE = ""
    # A labelled data set. Empty: the first one of LABELED.
    merge.THRESHOLD_LABELS = ""

    default = FilterSettings()
    keep = node.FILTER = CN()
    keep.T_IGNORE = default.t_ignore  # None: 0.2 below the threshold
    keep.MIN_SIDE = default.min_side  # pixels
    keep.MIN_AREA = default.min_area
    keep.MAX_ASPECT = default.max_aspect
    keep.DUPLICATE_IOU = default.duplicate_iou  # None: classes do not suppress each other
    keep.MAX_BOXES = default.max_boxes  # of an image
    keep.MIN_AGREEMENT = default.min_agreement  # with the mirrored image; needs GENERATE.FLIP
    keep.EMPTY_IMAGES = default.empty_images  # "auto", "keep", "drop"
    keep.MAX_AMBIGUOUS_RATIO = default.max_ambiguous_ratio

    # What a pseudo box counts: "none" (all 1), "score", or "linear", from W_MIN at the threshold.
    node.WEIGHTS = "none"
    node.W_MIN = 0.25

    # Phase C has the solver of the config with a new optimiser. Its length is so many epochs of
    # LABELED, but MIN_ITERS at least; SOLVER.STEPS stay where they are in proportion.
    last = node.PHASE_C = CN()
    last.WEIGHTS = ""  # what it begins with. Empty: phase B's
    last.LR_FACTOR = 0.1  # times SOLVER.BASE_LR
    last.WARMUP_ITERS = 500
    last.EPOCHS = 12.0
    last.MIN_ITERS = 2000
    last.MIX_PSEUDO = 0.0  # share of pseudo-labelled images, against forgetting
    # Classes that LABELED, or one of its data sets, lacks: "pseudo" adds the teachers' boxes of
    # them, unless their IoU with a label is above MISSING_IOU, and on images that the filter has
    # dropped as boxes to ignore; "mask" leaves their losses on background out (independent class
    # scores only); "background" does nothing, so that they are unlearned; "drop" takes them from
    # the student.
    last.MISSING = "pseudo"
    last.MISSING_IOU = 0.7
    # The student's classes from phase C on, by name. Empty: as before, or see MISSING "drop".
    last.CLASSES = []


_NAMES = list_of(text, "names")
_FRACTION = optional(number(above=0, below=1), "the usual one")
_TWO = list_of(number(above=0, below=1), "", lengths=(2,))
_LIMITS = Rule(
    lambda x: _TWO.fits(x) and x[0] <= x[1], "two numbers between 0 and 1, the lower one first"
)
_VALUES = {
    "PSEUDO_LABEL": {
        "TEACHERS": list_of(text, "teachers, NAME=CONFIG or NAME=CONFIG,WEIGHTS"),
        "CLASS_MAPS": list_of(text, "class maps, NAME=FILE"),
        "UNLABELED": list_of(text, "data sets and folders"),
        "LABELED": list_of(text, "data sets"),
        "PHASE_B_IMAGES": one_of(*B_IMAGES),
        "CLASSES": _NAMES,
        "PHASES": list_of(one_of("A", "B", "C"), "phases, some of A, B, C", empty=False),
        "BASELINE": one_of(*BASELINES),
        "LABELS_DIR": text,
        "USE_IGNORE": truth,
        "LICENCE": text,
        "ORIGIN": text,
        "WEIGHTS": one_of(*WEIGHT_MODES),
        "W_MIN": share,
    },
    "PSEUDO_LABEL.GENERATE": {key.upper(): rule for key, rule in GENERATE_RULES.items()},
    "PSEUDO_LABEL.MERGE": {
        "MODE": one_of(*MODES),
        "IOU": _FRACTION,
        "SCORE_TYPE": one_of(*SCORE_TYPES),
        "MIN_VOTES": whole(1),
        "THRESHOLDS": one_of(*THRESHOLD_MODES),
        "THRESHOLD": number(above=0, below=1),
        "BETA": number(above=0),
        "LIMITS": _LIMITS,
        "THRESHOLD_FILE": text,
        "THRESHOLD_LABELS": text,
    },
    "PSEUDO_LABEL.FILTER": {key.upper(): rule for key, rule in FILTER_RULES.items()},
    "PSEUDO_LABEL.PHASE_C": {
        "WEIGHTS": text,
        "LR_FACTOR": number(above=0),
        "WARMUP_ITERS": whole(0),
        "EPOCHS": number(above=0),
        "MIN_ITERS": whole(1),
        "MIX_PSEUDO": number(least=0, below=1),
        "MISSING": one_of(*MISSING),
        "MISSING_IOU": share,
        "CLASSES": _NAMES,
    },
}


def check_pseudo_label_config(cfg: CN) -> None:
    """Checks the node of a finished config.

    Raises:
        ConfigError: with one sentence on the first value or combination that cannot be.
    """
    check_values(cfg, _VALUES)
    node = cfg.PSEUDO_LABEL
    if not node.TEACHERS:
        _check_without_teachers(cfg)
        return
    what = "PSEUDO_LABEL"
    if not node.UNLABELED and not node.LABELED:
        raise ConfigError(f"{what}.UNLABELED and {what}.LABELED are empty: name images to label.")
    for part, missing in (("unlabeled", node.UNLABELED), ("labeled", node.LABELED)):
        if part == node.PHASE_B_IMAGES and not missing:
            raise ConfigError(
                f"{what}.PHASE_B_IMAGES is {part}, but {what}.{part.upper()} is empty: fill it, or "
                "take other images."
            )
    if node.BASELINE and not node.LABELED:
        raise ConfigError(
            f"{what}.BASELINE {node.BASELINE} needs people's labels: name them in {what}.LABELED."
        )
    by_labels = node.MERGE.THRESHOLDS in NEEDS_LABELS
    if by_labels and not (node.MERGE.THRESHOLD_LABELS or node.LABELED):
        raise ConfigError(
            f"{what}.MERGE.THRESHOLDS {node.MERGE.THRESHOLDS} needs labels: name a data set in "
            f"{what}.MERGE.THRESHOLD_LABELS."
        )
    if list(node.PHASES) == ["C"] and not node.LABELED:
        raise ConfigError(f"{what}.PHASES is C alone, and {what}.LABELED is empty: fill it.")


def _check_without_teachers(cfg: CN) -> None:
    node, default = cfg.PSEUDO_LABEL, CN()
    add_pseudo_label_config(default)
    keys = ("LABELS_DIR", "BASELINE", "LABELED", "UNLABELED", "PHASES")
    given = [key for key in keys if list(node[key]) != list(default.PSEUDO_LABEL[key])]
    if given and not _is_a_phase(cfg):
        raise ConfigError(
            f"PSEUDO_LABEL.TEACHERS is empty, so that PSEUDO_LABEL.{', '.join(given)} would be "
            "ignored and no phase run: name the teachers (without phase A their files are not "
            "opened), or leave that out."
        )


def _is_a_phase(cfg: CN) -> bool:
    """Whether it is the config that a phase has written to its folder."""
    node, prefixes = cfg.PSEUDO_LABEL, (f"{EXPORTED}:", f"{RELABELED}:")
    learned = all(x in node.LABELED or x.startswith(prefixes) for x in cfg.DATASETS.TRAIN)
    return os.path.isabs(node.LABELS_DIR) and learned
