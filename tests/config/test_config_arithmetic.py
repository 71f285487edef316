"""Arithmetic in config files is computed, and nothing else is."""

import time
from pathlib import Path

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import get_cfg

from kd_d2.config.arithmetic import ConfigLoader, evaluate_arithmetic
from kd_d2.config.files import merge_config_file

ZOO = Path(model_zoo.get_config_file("Base-RetinaNet.yaml")).parent
STOCK = [
    "Base-RetinaNet.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml",
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml",
    "quick_schedules/retinanet_R_50_FPN_instant_test.yaml",
]


@pytest.mark.parametrize("name", STOCK)
def test_configs_of_detectron2_are_read_as_detectron2_reads_them(name):
    stock, ours = get_cfg(), get_cfg()
    stock.merge_from_file(str(ZOO / name), allow_unsafe=True)
    merge_config_file(ours, str(ZOO / name))
    assert ours == stock and ours.dump() == stock.dump()


@pytest.mark.parametrize(
    "text",
    [
        "-3",
        "1e-4 * 16 / 8",
        "2**-0.5 + 10 - 3",
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",
        "(1, [2.5, (3,)], [])",
        "[x for x in [y * 2 for y in (1, 2)]]",
    ],
)
def test_arithmetic_is_pythons(text):
    assert repr(evaluate_arithmetic(text)) == repr(eval(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "'text'",
        "True",
        "1j",
        "f(1)",
        "().__class__",
        "__import__('os').getcwd()",
        "[1] * 1000000",
        "9**9**9",
        "(((9**64)**64)**64)**64",
        "10.0**60",
        "1e999 - 1e999",
        "(-8)**(1/3)",
        "1 / 0",
        "1 // 2",
        "[x for x in 5]",
        "[x for x in [1, 2] if x]",
        "[[x, y] for x in [1] for y in [2]]",
        "[[x for y in [1]] for x in [1]]",
        "[[x, x] for x in [[y, y] for y in [1]]]",
        "[x for x in range(9)]",
        "{1: 2}",
        "lambda: 1",
        "-" * 999 + "1",
        "(" * 400 + "1" + ")" * 400,
        "1 +" * 400 + "1",
        "1\0",
    ],
)
def test_everything_else_is_refused_at_once(text):
    start = time.perf_counter()
    with pytest.raises(ValueError):
        evaluate_arithmetic(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "arguments", ["['1', '2']", "[]", "[[1]]", "{args: ['1']}", "'1'", "[exit()]"]
)
def test_the_tag_takes_one_expression(arguments):
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load(f"a: !!python/object/apply:eval {arguments}", ConfigLoader)


def test_other_users_of_yaml_keep_their_loader():
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load("!!python/object/apply:eval ['1']")
