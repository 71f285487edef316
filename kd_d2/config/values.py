"""The values that the keys of Detectron2 and kd_d2 may have.

Only what cannot work is refused: a value that somebody may want passes. Names of registries are
checked in ``names.py``, values of a project's own node by the project.
"""

import math

from PIL import Image

from kd_d2.config.rules import (
    Rule,
    device,
    list_of,
    norm,
    number,
    one_of,
    optional,
    share,
    text,
    truth,
    whole,
)
from kd_d2.modeling.heads import HEAD_VALUES
from kd_d2.modeling.inheritance import PARTS
from kd_d2.modeling.regions import REGION_VALUES

__all__ = ["VALUES"]

_NAMES = list_of(text, "names, e.g. ['p3', 'p4']")
_CLASS_NAMES = list_of(text, "class names")
_LEVELS = list_of(text, "names of feature levels, e.g. ['p3', 'p4']", empty=False)
_STEPS = list_of(whole(0), "iterations, e.g. (6000, 8000)")
_SIZES = list_of(whole(0), "whole numbers of pixels, e.g. (640, 800)", empty=False)
_WEIGHTS = list_of(number(above=0), "four numbers above 0", lengths=(4,))
_GROWING = number(above=0)
_ANCHOR_SIZES = list_of(
    Rule(lambda x: _GROWING.fits(x) or list_of(_GROWING, "", empty=False).fits(x), ""),
    "numbers above 0, or of one such list for each feature level, e.g. [[32], [64]]",
    empty=False,
)
_BOX_LOSSES = one_of("smooth_l1", "giou", "diou", "ciou")
# '': a mask or keypoint head without a pooler of its own
_POOLERS = one_of("ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated", "")
_NOT_NEGATIVE = number(least=0)
_POINT = list_of(_NOT_NEGATIVE, "a share and a factor", lengths=(2,))
_HEAD_WEIGHT = Rule(lambda x: _NOT_NEGATIVE.fits(x) or list_of(_POINT, "", empty=False).fits(x), "")
_STUDENT_S = "the student's"

_LEARNING = {
    "BASE_LR": _NOT_NEGATIVE,
    "WEIGHT_DECAY": _NOT_NEGATIVE,
    "MOMENTUM": number(least=0, below=1),
    "STEPS": _STEPS,
    "GAMMA": _NOT_NEGATIVE,
    "WARMUP_ITERS": whole(0),
    "WARMUP_FACTOR": _NOT_NEGATIVE,
}
_DENSE = {
    "IN_FEATURES": _LEVELS,
    "NUM_CLASSES": whole(1),
    "NUM_CONVS": whole(0),
    "NORM": norm,
    "PRIOR_PROB": number(above=0, below=1),
    "TOPK_CANDIDATES_TEST": whole(1),
    "SCORE_THRESH_TEST": number(),
    "NMS_THRESH_TEST": _NOT_NEGATIVE,
}
_ANCHORED = {
    **_DENSE,
    "ANCHOR_SCALE": number(above=0),
    "ANCHOR_OFFSET": number(),
    "TOPK": whole(1),
}
_FOCAL = {"FOCAL_LOSS_ALPHA": number(), "FOCAL_LOSS_GAMMA": _NOT_NEGATIVE}
_POOLED = {
    "POOLER_RESOLUTION": whole(1),
    "POOLER_SAMPLING_RATIO": whole(0),
    "POOLER_TYPE": _POOLERS,
    "NUM_FC": whole(0),
    "FC_DIM": whole(1),
    "NUM_CONV": whole(0),
    "CONV_DIM": whole(1),
    "NORM": norm,
    "LOSS_WEIGHT": _NOT_NEGATIVE,
    "SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
}

VALUES: dict[str, dict[str, Rule]] = {
    "": {
        "OUTPUT_DIR": Rule(lambda x: isinstance(x, str) and x != "", "the path of a folder"),
        "SEED": whole(below=2**32 - 1),
        "VIS_PERIOD": whole(),
    },
    "SOLVER": {
        **_LEARNING,
        "MAX_ITER": whole(1),
        "IMS_PER_BATCH": whole(1),
        "CHECKPOINT_PERIOD": whole(1),
        "REFERENCE_WORLD_SIZE": whole(0),
        "BASE_LR_END": _NOT_NEGATIVE,
        "BIAS_LR_FACTOR": optional(_NOT_NEGATIVE, "1"),
        "WEIGHT_DECAY_NORM": optional(_NOT_NEGATIVE, "WEIGHT_DECAY"),
        "WEIGHT_DECAY_BIAS": optional(_NOT_NEGATIVE, "WEIGHT_DECAY"),
        "NUM_DECAYS": whole(0),
        "LR_SCHEDULER_NAME": one_of(
            "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
        ),
        "WARMUP_METHOD": one_of("linear", "constant"),
        "OPTIMIZER": one_of("SGD", "AdamW"),
    },
    "SOLVER.TEACHER": {
        **{key: optional(rule, _STUDENT_S) for key, rule in _LEARNING.items()},
        "OPTIMIZER": Rule(
            lambda x: x in (None, "", "SGD", "AdamW"), "one of SGD, AdamW, or '' for the student's"
        ),
    },
    "SOLVER.AMP": {"ENABLED": truth, "DTYPE": one_of("float16", "bfloat16")},
    "SOLVER.CLIP_GRADIENTS": {
        "CLIP_TYPE": one_of("value", "norm", "full_model"),
        "CLIP_VALUE": number(above=0),
        # an infinite one is the largest element's
        "NORM_TYPE": Rule(lambda x: x == math.inf or _GROWING.fits(x), _GROWING.words),
    },
    "DATALOADER": {
        "NUM_WORKERS": whole(0),
        "REPEAT_THRESHOLD": _NOT_NEGATIVE,
        "ON_BAD_IMAGE": one_of("raise", "skip"),
        "DATASET_SHARES": list_of(share, "numbers from 0 to 1, e.g. [0.75, 0.25]; or empty"),
    },
    "DATASETS": {
        "TRAIN": list_of(text, "names of data sets"),
        "TEST": list_of(text, "names of data sets"),
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": _SIZES,
        "MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
        "MAX_SIZE_TRAIN": whole(1),
        "MIN_SIZE_TEST": whole(0),
        "MAX_SIZE_TEST": whole(1),
        "RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
        "MASK_FORMAT": one_of("polygon", "bitmask"),
        "STRONG_AUGMENTATION": truth,
        "FORMAT": one_of("BGR", "RGB", "YUV-BT.601", *(m for m in Image.MODES if m != "RGB")),
    },
    "INPUT.CROP": {
        "TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
        "SIZE": list_of(number(above=0), "two numbers above 0", lengths=(2,)),
    },
    "TEST": {"EVAL_PERIOD": whole(), "DETECTIONS_PER_IMAGE": whole(-1), "CROWD_METRICS": truth},
    "TEST.AUG": {"MIN_SIZES": _SIZES, "MAX_SIZE": whole(1)},
    "TEST.PRECISE_BN": {"NUM_ITER": whole(1)},
    "MODEL": {
        "DEVICE": device,
        "WEIGHTS": Rule(text.fits, "a file or an address, or '' for random weights"),
        "WEIGHTS_CLASSES": _CLASS_NAMES,
        "PIXEL_MEAN": list_of(number(), "numbers, one for each channel", empty=False),
        "PIXEL_STD": list_of(number(above=0), "numbers above 0, one for each channel", empty=False),
    },
    "MODEL.BACKBONE": {"FREEZE_AT": whole()},
    "MODEL.FPN": {
        "IN_FEATURES": _NAMES,
        "OUT_CHANNELS": whole(1),
        "NORM": norm,
        "FUSE_TYPE": one_of("sum", "avg"),
        "TOP_BLOCK_IN_FEATURE": one_of("res5", "p5"),
        "TOP_BLOCK_RELU": truth,
        "INIT": one_of("caffe2", "xavier"),
    },
    "MODEL.RESNETS": {
        "OUT_FEATURES": _LEVELS,
        "NUM_GROUPS": whole(1),
        "NORM": norm,
        "WIDTH_PER_GROUP": whole(1),
        "RES2_OUT_CHANNELS": whole(1),
        "STEM_OUT_CHANNELS": whole(1),
        "RES5_DILATION": Rule(lambda x: x in (1, 2), "1 or 2"),
    },
    "MODEL.SWIN": {
        "EMBED_DIM": whole(1),
        # the limits of these four are the backbone's own to check
        "DEPTHS": list_of(whole(), "four whole numbers, one for each stage"),
        "NUM_HEADS": list_of(whole(), "four whole numbers, one for each stage"),
        "WINDOW_SIZE": whole(),
        "DROP_PATH_RATE": number(),
        "MLP_RATIO": number(above=0),
        "PRETRAIN_IMG_SIZE": whole(1),
        "OUT_FEATURES": _LEVELS,
    },
    "MODEL.ANCHOR_GENERATOR": {
        "SIZES": _ANCHOR_SIZES,
        "ASPECT_RATIOS": _ANCHOR_SIZES,
        "OFFSET": number(least=0, below=1),
    },
    "MODEL.RPN": {
        "IN_FEATURES": _LEVELS,
        "IOU_THRESHOLDS": list_of(number(), "numbers"),
        "BATCH_SIZE_PER_IMAGE": whole(1),
        "POSITIVE_FRACTION": share,
        "BBOX_REG_WEIGHTS": list_of(number(above=0), "numbers above 0", lengths=(4, 5)),
        "BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
        "BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
        "SMOOTH_L1_BETA": _NOT_NEGATIVE,
        "LOSS_WEIGHT": _NOT_NEGATIVE,
        "PRE_NMS_TOPK_TRAIN": whole(1),
        "PRE_NMS_TOPK_TEST": whole(1),
        "POST_NMS_TOPK_TRAIN": whole(1),
        "POST_NMS_TOPK_TEST": whole(1),
        "NMS_THRESH": _NOT_NEGATIVE,
    },
    "MODEL.ROI_HEADS": {
        "NUM_CLASSES": whole(1),
        "IN_FEATURES": _LEVELS,
        "IOU_THRESHOLDS": list_of(number(), "numbers"),
        "BATCH_SIZE_PER_IMAGE": whole(1),
        "POSITIVE_FRACTION": share,
        "SCORE_THRESH_TEST": number(),
        "NMS_THRESH_TEST": _NOT_NEGATIVE,
    },
    "MODEL.ROI_BOX_HEAD": _POOLED,
    "MODEL.ROI_MASK_HEAD": _POOLED,
    "MODEL.ROI_KEYPOINT_HEAD": _POOLED,
    "MODEL.RETINANET": {
        **_DENSE,
        **_FOCAL,
        "IOU_THRESHOLDS": list_of(number(), "numbers"),
        "BBOX_REG_WEIGHTS": list_of(number(above=0), "numbers above 0", lengths=(4, 5)),
        "SMOOTH_L1_LOSS_BETA": _NOT_NEGATIVE,
        "BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    },
    "MODEL.FCOS": {
        **_DENSE,
        **_FOCAL,
        "CENTERNESS_ON_REG": truth,
        "NORM_REG_TARGETS": truth,
        "CENTER_SAMPLING_RADIUS": _NOT_NEGATIVE,
        "POINT_OFFSET": number(),
        "BOX_LOSS": one_of("giou", "iou"),
        "MIN_CENTERNESS_SUM": number(above=0),
        "SCORE": one_of("sqrt", "product"),
        "CANDIDATES_TEST": one_of("pairs", "points"),
        "SIZES_OF_INTEREST": list_of(number(above=0), "numbers above 0, or empty"),
    },
    "MODEL.ATSS": {
        **_ANCHORED,
        **_FOCAL,
        "BRANCH": one_of("iou", "centerness"),
        "BBOX_REG_WEIGHTS": _WEIGHTS,
        "BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
        "BRANCH_LOSS_WEIGHT": _NOT_NEGATIVE,
    },
    "MODEL.GFL": {
        **_ANCHORED,
        "FOCAL_LOSS_GAMMA": _NOT_NEGATIVE,
        "REG_MAX": whole(1),
        "BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
        "DFL_LOSS_WEIGHT": _NOT_NEGATIVE,
    },
    "MODEL.AUTOASSIGN": {
        **_DENSE,
        **{f"{part}_LOSS_WEIGHT": _NOT_NEGATIVE for part in ("BOX", "POS", "NEG", "CENTER")},
    },
    "MODEL.DDOD": {
        **_ANCHORED,
        **_FOCAL,
        "NUM_CONVS": whole(1),
        "BBOX_REG_WEIGHTS": _WEIGHTS,
        "CLS_EXPONENT": share,
        "BOX_EXPONENT": share,
        "BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
        "IOU_LOSS_WEIGHT": _NOT_NEGATIVE,
    },
    "MODEL.PAA": {
        **_ANCHORED,
        **_FOCAL,
        "BBOX_REG_WEIGHTS": _WEIGHTS,
        "BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
        "IOU_LOSS_WEIGHT": _NOT_NEGATIVE,
        "BOX_LOSS_WEIGHTING": one_of("auto", "iou", "none"),
        "IOU_THRESHOLD": share,
        "SPLIT": one_of("filtered", "prefix"),
        "SINGLE_CANDIDATE": one_of("drop", "keep"),
        "MAX_NON_FINITE_STEPS": whole(1),
        "IOU_BRANCH": truth,
        "OBJECTNESS": one_of("none", "cop", "iop"),
        "SCORE_VOTING": truth,
    },
    "MODEL.LABEL_WEIGHTS": {
        "ENABLED": truth,
        "NORMALIZE": one_of("count", "weight_sum"),
        "BOX_LOSS": one_of("all", "reliable", "none"),
        "LEAST_AGREEMENT": share,
        "IGNORE": truth,
        "IGNORE_OVERLAP": share,
        "COVERED": truth,
    },
    "MODEL.KD": {
        "ENABLED": truth,
        "STUDENT": text,
        "EVAL_TEACHER": truth,
        "SKIP_UNUSED_CELLS": truth,
        "HEAD_WEIGHTS": list_of(_HEAD_WEIGHT, "numbers, or of lists of (share, factor)"),
        "ASSIGN_BY": one_of("student", "teacher"),
        "LABEL_LOSSES": truth,
        "INHERIT": list_of(one_of(*PARTS), f"some of {', '.join(PARTS)}; or empty"),
        "CHECK_TEACHER": whole(0),
        "LOG_GRADIENT_SHARES": whole(0),
    },
    "MODEL.KD.TEACHER": {
        "NAME": text,
        "CONFIG_FILE": text,
        "WEIGHTS": text,
        "ALLOW_PARTIAL_WEIGHTS": truth,
        "CHANNELS_LAST": truth,
        "COMPILE": truth,
        "CLASSES": _CLASS_NAMES,
        "REQUIRE_SAME_CLASSES": truth,
    },
    **HEAD_VALUES,
    **REGION_VALUES,
}
