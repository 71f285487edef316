"""What a command line needs before training: the config from file and overrides, the device,
and mistakes told in one sentence."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import getitem

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from kd_d2.config import get_kd_cfg
from kd_d2.config.files import fitting, flat_keys, merge_config_file, unknown_key
from kd_d2.config.student import wrap_student
from kd_d2.registry import UnknownNameError

__all__ = ["choose_device", "load_config", "user_errors"]

logger = logging.getLogger(__name__)


def load_config(config_file: str, overrides: list[str] | None = None) -> CfgNode:
    """Read a config file and overrides over the defaults of Detectron2 and kd_d2.

    Args:
        config_file: YAML, read without running Python tags; empty for the defaults alone.
        overrides: ``KEY VALUE KEY VALUE ...``.

    Returns:
        The config, not frozen. Exported weights that were moved together with their config are
        found beside it; weights that the overrides name are where these say, or nowhere. Heads in
        the config of a plain detector make it that of a distiller, see :func:`wrap_student`.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: a key is unknown (the nearest ones are named) or a value has the wrong type.
    """
    cfg = get_kd_cfg()
    known = list(flat_keys(cfg))
    free = [key for key in known if getitem(*_place(cfg, key)) is None]
    if config_file:
        merge_config_file(cfg, config_file)
        _find_moved_weights(cfg, config_file)
    _merge_overrides(cfg, overrides or [], known, free)
    wrap_student(cfg)
    return cfg


def _find_moved_weights(cfg: CfgNode, config_file: str) -> None:
    weights = cfg.MODEL.WEIGHTS
    if not weights or "://" in weights or os.path.isfile(weights):
        return
    beside = os.path.join(os.path.dirname(config_file), os.path.basename(weights))
    if os.path.isfile(beside):
        cfg.MODEL.WEIGHTS = beside


def _merge_overrides(cfg: CfgNode, overrides: list[str], known: list[str], free: list[str]) -> None:
    for argument in overrides[::2]:
        if argument.startswith("-"):
            raise ValueError(f"Option {argument} must come before the KEY VALUE overrides.")
        if "=" in argument:
            raise ValueError(f"Overrides are 'KEY VALUE' with a space: not '{argument}'.")
        if argument not in known:
            raise ValueError(unknown_key(argument, known))
    if len(overrides) % 2:
        raise ValueError(f"Overrides are pairs 'KEY VALUE', but {overrides[-1]} has no value.")
    for key in set(overrides[::2]).intersection(free):
        # A default of None admits any type ("auto", iterations, fractions), and the file's must not
        # stand in the way of it
        node, name = _place(cfg, key)
        node[name] = None
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        node, name = _place(cfg, key)
        cfg.merge_from_list([key, fitting(key, value, node[name])])


def _place(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """The node that holds a dotted key, and the key's name there."""
    *nodes, name = key.split(".")
    return reduce(getitem, nodes, cfg), name


def choose_device(cfg: CfgNode, num_gpus: int) -> None:
    """Set MODEL.DEVICE to the CPU, and say so, where the run is to have no GPU or finds none."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        logger.info("No GPU found: running on the CPU (%d threads).", torch.get_num_threads())
    elif num_gpus == 0:
        logger.info("--num-gpus 0: running on the CPU (%d threads).", torch.get_num_threads())
    else:
        return
    cfg.MODEL.DEVICE = "cpu"


USER_ERRORS = (ValueError, OSError, UnknownNameError)


@contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Tell mistakes that a user can mend in one sentence on stderr and exit with code 2.

    With KD_D2_DEBUG=1 they keep their traceback.

    Args:
        kinds: the exceptions to treat so; by default those that checks of configs, files and data
            raise.
    """
    kinds = kinds or USER_ERRORS
    debugging = os.environ.get("KD_D2_DEBUG", "") not in ("", "0")

    def is_news(record: logging.LogRecord) -> bool:
        return debugging or not record.exc_info or not isinstance(record.exc_info[1], kinds)

    # Detectron2's loop logs the traceback of whatever ends the training
    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    loop_logger.addFilter(is_news)
    try:
        yield
    except kinds as error:
        if debugging:
            raise
        if not _is_main_process():
            # Rank 0 most likely has the same to say, and ends all when it has said it
            time.sleep(2)
        text = str(error)
        if isinstance(error, OSError) and error.errno and error.filename:
            text = f"'{error.filename}': {error.strerror}. Check the path, or give another."
        if "Original Traceback" in text:  # of a data-loading process; its error stands at the end
            text = text.strip().splitlines()[-1].partition(": ")[2]
        print(f"Error: {text} (KD_D2_DEBUG=1 shows where.)", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        loop_logger.removeFilter(is_news)


def _is_main_process() -> bool:
    """Whether this is rank 0, also before torchrun's processes have found together."""
    return comm.get_rank() == 0 and os.environ.get("RANK", "0") == "0"
