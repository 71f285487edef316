"""Values that cannot work are refused with their key, and those of Detectron2's configs pass."""

from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.files import merge_config_file
from kd_d2.config.rules import ConfigError, check_values, list_of, number, one_of, optional, whole
from kd_d2.config.values import VALUES

ZOO = Path(model_zoo.get_config_file("Base-RetinaNet.yaml")).parent
INF, NAN = float("inf"), float("nan")


def with_value(cfg, key, value):
    *path, leaf = key.split(".")
    reduce(getitem, path, cfg)[leaf] = value
    return cfg


@pytest.mark.parametrize("name", sorted(str(p.relative_to(ZOO)) for p in ZOO.rglob("*.yaml")))
def test_configs_of_detectron2_pass(name):
    cfg = get_kd_cfg()
    merge_config_file(cfg, str(ZOO / name))
    check_config(cfg)


def test_keys_exist():
    """But for those of Detectron2's other versions, or of other heads."""
    cfg = get_kd_cfg()
    for node, rules in VALUES.items():
        keys = reduce(getitem, filter(None, node.split(".")), cfg).keys()
        assert keys & rules.keys(), node
        if not node.endswith("_HEAD"):
            assert rules.keys() <= keys, node


def test_a_config_of_another_detectron2_lacks_keys():
    check_values(get_cfg(), VALUES)
    cfg = get_kd_cfg()
    for node, key in ((cfg.SOLVER, "BASE_LR_END"), (cfg.MODEL, "RPN"), (cfg.TEST, "AUG")):
        del node[key]
    check_values(cfg, VALUES)


@pytest.mark.parametrize(
    "key, values",
    [
        ("SOLVER.BASE_LR", [None, "a", -1.0, INF, NAN, True, [1]]),
        ("SOLVER.MAX_ITER", [None, 0, 1.0, True]),
        ("SOLVER.CHECKPOINT_PERIOD", [0, None]),
        ("SOLVER.MOMENTUM", [1.0, 2.0, -0.1, NAN]),
        ("SOLVER.GAMMA", [-1.0, None]),
        ("SOLVER.STEPS", [3, ("a",), (0.5,), (-1,), None]),
        ("SOLVER.WARMUP_ITERS", [-4, 0.5]),
        ("SOLVER.WARMUP_METHOD", ["foo", None]),
        ("SOLVER.LR_SCHEDULER_NAME", ["Foo"]),
        ("SOLVER.REFERENCE_WORLD_SIZE", [-1]),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", [-1.0, INF]),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ["foo"]),
        ("SOLVER.TEACHER.STEPS", [3, ("a",)]),
        ("SOLVER.TEACHER.GAMMA", ["x", -1.0]),
        ("SOLVER.TEACHER.MOMENTUM", [1.5]),
        ("SOLVER.TEACHER.OPTIMIZER", ["Adam"]),
        ("DATALOADER.NUM_WORKERS", [-1, None]),
        ("DATALOADER.DATASET_SHARES", [0.5, [-0.5, 1.5], ["a"], [NAN], [True], None]),
        ("INPUT.STRONG_AUGMENTATION", [None, 1, "yes"]),
        ("INPUT.MASK_FORMAT", ["foo"]),
        ("INPUT.RANDOM_FLIP", [True]),
        ("INPUT.MIN_SIZE_TRAIN", [(), 64, ("a",)]),
        ("OUTPUT_DIR", [None, ""]),
        ("SEED", [2**40, None]),
        ("MODEL.DEVICE", ["tpu", None, ""]),
        ("MODEL.WEIGHTS", [None]),
        ("MODEL.FCOS.NORM", ["foo", 3]),
        ("MODEL.FCOS.NUM_CONVS", [-1]),
        ("MODEL.FCOS.IN_FEATURES", [[], "p3", [3]]),
        ("MODEL.ATSS.TOPK", [0]),
        ("MODEL.ATSS.ANCHOR_SCALE", [0.0, NAN]),
        ("MODEL.RETINANET.PRIOR_PROB", [0.0, 1.0]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[], [[]], [[0]], [["a"]]]),
        ("MODEL.SWIN.DEPTHS", [["a"], None]),
        ("MODEL.KD.ENABLED", [None, 1]),
        ("MODEL.KD.TEACHER.CLASSES", ["cat", [1]]),
        ("MODEL.KD.PKD.WEIGHT", [None, -1.0, INF]),
    ],
)
def test_wrong_values(key, values):
    for value in values:
        cfg = with_value(get_kd_cfg(), key, value)
        with pytest.raises(ConfigError) as error:
            check_config(cfg)
        text = str(error.value)
        assert text.startswith(f"{key} is {value!r}; it must be ") and text.endswith(".")


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", INF),
        ("SOLVER.WEIGHT_DECAY_NORM", None),
        ("SOLVER.BIAS_LR_FACTOR", None),
        ("SOLVER.TEACHER.OPTIMIZER", None),
        ("SOLVER.TEACHER.STEPS", [5]),
        ("MODEL.FCOS.NORM", "nnSyncBN"),
        ("MODEL.RETINANET.NORM", ""),
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", -1),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""),
        ("MODEL.DEVICE", "cuda:1"),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("INPUT.FORMAT", "L"),
        ("TEST.EVAL_PERIOD", -1),
        ("MODEL.KD.PKD.WEIGHT", 0),
    ],
)
def test_unusual_values_that_work(key, value):
    check_config(with_value(get_kd_cfg(), key, value))


def test_rules_say_what_they_allow():
    assert whole(1).words == "a whole number of at least 1"
    assert number(above=0, below=1).words == "a number above 0 and below 1"
    assert optional(one_of("a", ""), "none").words == "one of a, '', or None for none"
    pairs = list_of(whole(), "pairs", lengths=(2,))
    assert pairs.fits((1, 2)) and not pairs.fits([1]) and not pairs.fits("12")
