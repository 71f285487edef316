"""YAML files and the ``_BASE_`` files that they name, as one mapping."""

import os
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from kd_d2.config.arithmetic import ConfigLoader

__all__ = ["read_config"]


def read_config(path: str, named_by: tuple[str, ...] = ()) -> dict:
    """Read a config file and its bases, as Detectron2 does, with errors that name the file.

    Args:
        path: YAML.
        named_by: the files whose ``_BASE_`` led here, the nearest last.

    Returns:
        what the files say, a file's own values over those of its bases.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is no YAML mapping, has a Python tag, or is a base of itself.
    """
    asked = f", which '{named_by[-1]}' names as its {BASE_KEY}" if named_by else ""
    if os.path.realpath(path) in map(os.path.realpath, named_by):
        raise ValueError(f"Config file '{path}'{asked}, has itself as a base: remove that line.")
    try:
        with PathManager.open(path, "r") as file:
            values = yaml.load(file, ConfigLoader)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"Config file '{path}' has a Python tag, which is not read because it runs code "
            f"({error.problem}): write the numbers themselves."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"Config file '{path}' is no valid YAML: {' '.join(str(error).split())}"
        ) from error
    except OSError as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        text = f"Config file '{path}'{asked}, cannot be read: {error.strerror or error}."
        raise kind(text) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"Config file '{path}'{asked} is {'empty' if values is None else 'no mapping'}: it "
            "must hold keys and values, e.g. 'MODEL: {META_ARCHITECTURE: RetinaNet}'."
        )
    bases = values.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ValueError(f"{BASE_KEY} of '{path}' is {base!r}: it must be a file or a list.")
        base = os.path.expanduser(base)
        if "://" not in base:
            base = os.path.join(os.path.dirname(path), base)
        _merge(merged, read_config(base, (*named_by, path)), path)
    _merge(merged, values, path)
    return merged


def _merge(into: dict, values: dict, path: str, prefix: str = "") -> None:
    for key, value in values.items():
        old = into.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value, path, f"{prefix}{key}.")
        elif isinstance(value, dict) and key in into:
            raise ValueError(f"{prefix}{key} is a node in '{path}' and a value in a base of it.")
        else:
            into[key] = value
