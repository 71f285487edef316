"""Config files, and what is wrong with them."""

import difflib
import os
from collections.abc import Iterator

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

__all__ = ["flat_keys", "merge_config_file", "unknown_key"]


def merge_config_file(cfg: CfgNode, config_file: str, allow_unsafe: bool = False) -> None:
    """``cfg.merge_from_file``, with errors that say what to do.

    Args:
        cfg: the defaults, which say what keys there are.
        config_file: YAML.
        allow_unsafe: also read Python tags, which run code.

    Raises:
        FileNotFoundError: there is no such file; the nearest is named.
        ValueError: it is no YAML, has a Python tag, an unknown key (the nearest are named) or a
            value of the wrong type.
    """
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(f"Config file '{config_file}' does not exist.{_near(config_file)}")
    try:
        cfg.merge_from_file(config_file, allow_unsafe=allow_unsafe)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"Config file '{config_file}' (or a base of it) has a Python tag, which is not read "
            f"because it runs code ({error.problem}): write the numbers themselves."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"Config file '{config_file}' is no valid YAML: {' '.join(str(error).split())}"
        ) from error
    except KeyError as error:
        key = str(error.args[0]).rsplit(" ", 1)[-1]
        known = list(flat_keys(cfg))
        raise ValueError(f"{unknown_key(key, known)[:-1]} (in '{config_file}').") from error


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
