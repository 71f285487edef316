"""The frozen teacher's config: a CfgNode of its own, never merged with the student's."""

import os
from pathlib import Path

from detectron2.config import CfgNode

from kd_d2.config.files import flat_keys, merge_config_file
from kd_d2.model_zoo import resolve_config_file, resolve_weights


def load_teacher_cfg(cfg: CfgNode) -> CfgNode:
    """Reads ``MODEL.KD.TEACHER.CONFIG_FILE`` (a path, or a name in Detectron2's model zoo).

    A distillation config stands for its student.

    Raises:
        FileNotFoundError: for a config that does not exist; names the nearest.
        ValueError: for one that cannot be read.
    """
    from kd_d2.config import get_kd_cfg
    from kd_d2.config.student import is_distiller, student_config

    path = resolve_config_file(cfg.MODEL.KD.TEACHER.CONFIG_FILE)
    teacher = get_kd_cfg()
    merge_config_file(teacher, path)
    if is_distiller(teacher):
        teacher = student_config(teacher)
    teacher.MODEL.DEVICE = cfg.MODEL.DEVICE
    teacher.freeze()
    return teacher


def own_settings(cfg: CfgNode) -> dict:
    """Dotted key -> value, of all that is not as by default and shapes a detector and its input.

    So that keys which a later version adds change nothing.
    """
    from kd_d2.config import get_kd_cfg

    default = get_kd_cfg()
    values, usual = ({key: _value(c, key) for key in flat_keys(c)} for c in (cfg, default))
    skipped = ("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.WEIGHTS_CLASSES")
    return {
        key: value
        for key, value in values.items()
        if key not in skipped
        and key.startswith(("MODEL.", "INPUT.FORMAT"))
        and (key not in usual or usual[key] != value)
    }


def _value(node: CfgNode, key: str):
    for part in key.split("."):
        node = node[part]
    return node


def teacher_weights(cfg: CfgNode) -> str:
    """Where the teacher's weights are: ``TEACHER.WEIGHTS``, else those of the zoo's config.

    Raises:
        FileNotFoundError: for a file that does not exist; says how to train the teacher, if that
            is what makes the file.
    """
    node = cfg.MODEL.KD.TEACHER
    try:
        return resolve_weights(node.WEIGHTS, node.CONFIG_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{_how_to_train(cfg)}") from None


def _how_to_train(cfg: CfgNode) -> str:
    node = cfg.MODEL.KD.TEACHER
    trained = Path(load_teacher_cfg(cfg).OUTPUT_DIR, "model_final.pth")
    if trained != Path(node.WEIGHTS):
        return ""
    config = os.path.relpath(resolve_config_file(node.CONFIG_FILE))
    return f" Its training makes it: python train_net.py --config-file {config}"
