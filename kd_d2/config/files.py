"""Config files, and what is wrong with them."""

import difflib
import os
from ast import literal_eval
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.config.compat import guess_version
from detectron2.utils.file_io import PathManager

from kd_d2.config.reading import read_config

__all__ = ["fitting", "flat_keys", "merge_config_file", "unknown_key"]

_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
}


def merge_config_file(cfg: CfgNode, config_file: str) -> None:
    """``cfg.merge_from_file``, with errors that say what to do.

    Arithmetic in Detectron2's own configs is computed, and whole numbers are fine for float keys.

    Args:
        cfg: the defaults, which say what keys there are.
        config_file: YAML.

    Raises:
        OSError: there is no such file (the nearest is named), or it cannot be read.
        ValueError: it or a base of it is no YAML, has a Python tag, an unknown key (the nearest are
            named) or a value of the wrong type.
    """
    if not PathManager.isfile(config_file):
        if os.path.isdir(config_file):
            names = (n for n in os.listdir(config_file) if n.endswith(".yaml"))
            inside = sorted(names, key=lambda n: (n.startswith("Base"), n))  # a base runs nothing
            near = f", e.g. '{os.path.join(config_file, inside[0])}'" if inside else ""
            raise IsADirectoryError(f"Config file '{config_file}' is a folder: give a file{near}.")
        raise FileNotFoundError(f"Config file '{config_file}' does not exist.{_near(config_file)}")
    values = read_config(config_file)
    try:
        if _version(values, config_file, cfg.VERSION) < cfg.VERSION:
            # of Detectron2's first weeks; it knows how to translate the keys
            cfg.merge_from_file(config_file, allow_unsafe=False)
        else:
            cfg.merge_from_other_cfg(CfgNode(_fitting_node(values, cfg)))
    except KeyError as error:
        raise ValueError(f"Unknown config key in '{config_file}': {error.args[0]}.") from error
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')} (in '{config_file}').") from error


def _version(values: dict, config_file: str, latest: int) -> int:
    version = values.get("VERSION", latest)
    if version not in range(1, latest + 1):
        raise ValueError(f"VERSION is {version!r}; this Detectron2 reads up to {latest}.")
    nodes = all(isinstance(values.get(key, {}), dict) for key in ("MODEL", "TEST"))
    return guess_version(values, config_file) if "VERSION" not in values and nodes else version


def _fitting_node(values: dict, node: CfgNode, prefix: str = "", known: list[str] = ()) -> dict:
    """The values of a file in the types of the defaults in ``node``; see :func:`fitting`."""
    known = known or list(flat_keys(node))
    fitted = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in node:
            raise ValueError(unknown_key(name, known))
        if not isinstance(node[key], CfgNode):
            fitted[key] = fitting(name, value, node[key])
        elif isinstance(value, dict):
            fitted[key] = _fitting_node(value, node[key], f"{name}.", known)
        else:
            raise ValueError(f"{name} is {value!r}; it must hold keys and values of its own.")
    return fitted


def fitting(key: str, value, default):
    """A value from a file or command line as the type that a key has by default.

    Whole numbers serve as floats, lists as tuples and the other way round; None fits everything.

    Args:
        key: dotted, for the message.
        value: as YAML or the command line gives it, where a string may hold a Python literal.
        default: the value that the key has so far.

    Raises:
        ValueError: the types differ.

    >>> fitting("SOLVER.BASE_LR", "1", 0.01)
    1.0
    """
    text, kind = value, type(default)
    if isinstance(text, str):
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError):
            pass  # a text without quotes
        except TypeError as error:  # e.g. {[]: 1}
            raise ValueError(f"{key} is {text!r:.80}, which cannot be read: {error}.") from error
    if value is None or type(value) is kind or (default is None and type(value) in _KINDS):
        return text  # the config reads literals itself
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if kind in (list, tuple) and type(value) in (list, tuple):
        return kind(value)
    words = _KINDS.get(kind, "None, a number, text or a list")
    if kind is str and type(value) in (int, float):
        words += f""": write '"{value}"' if that is the text"""
    raise ValueError(f"{key} is {value!r:.80}; it must be {words}.")


def _near(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return ""
    names = os.listdir(folder or ".")
    # a name that breaks off (fcos_r50) is more than one with other letters in it (fcos_x101)
    longer = sorted(n for n in names if n.startswith(os.path.splitext(name)[0] + "_"))
    near = longer[:1] or difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{os.path.join(folder, near[0])}'?" if near else ""


def flat_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values of a config."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def unknown_key(key: str, known: list[str]) -> str:
    """One sentence about a key that there is not, with those it may have been meant for."""
    # the right key below the wrong node is the commonest slip
    last = key.rsplit(".", 1)[-1].upper()
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(key.upper(), elsewhere, n=4, cutoff=0.0)
    near += difflib.get_close_matches(key.upper(), known, n=2, cutoff=0.6)
    near = list(dict.fromkeys(near))
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    return f"Unknown config key {key}{hint}"
