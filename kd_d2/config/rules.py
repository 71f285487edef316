"""What a value of a config may be: small rules, each a test and the words that say it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.layers import get_norm

__all__ = [
    "ConfigError",
    "Rule",
    "check_values",
    "device",
    "list_of",
    "norm",
    "number",
    "one_of",
    "optional",
    "share",
    "text",
    "truth",
    "whole",
]


class ConfigError(ValueError):
    """A config that cannot work. The message says what is wrong and what to do."""


class Rule(NamedTuple):
    """What fits, and how a message calls it ("it must be ...")."""

    fits: Callable[[Any], bool]
    words: str


def check_values(cfg: CfgNode, table: Mapping[str, Mapping[str, Rule]]) -> None:
    """Checks values against a table: node -> key -> rule. Keys that there are not are passed over.

    Args:
        cfg: a finished config.
        table: the rules; nodes by their dotted names, "" for the root.

    Raises:
        ConfigError: with one sentence on the first value that does not fit.
    """
    for name, rules in table.items():
        node = cfg
        for part in filter(None, name.split(".")):
            node = node.get(part, {})
        for key, rule in rules.items():
            if key in node and not rule.fits(value := node[key]):
                dotted = f"{name}.{key}".lstrip(".")
                finite = not isinstance(value, float) or math.isfinite(value)
                words = rule.words if finite else f"{rule.words}, and finite"
                raise ConfigError(f"{dotted} is {value!r}; it must be {words}.")


def whole(least: float = -math.inf, below: float = math.inf) -> Rule:
    """A whole number."""
    words = _with_limits("a whole number", least, -math.inf, below)
    return Rule(lambda x: type(x) is int and least <= x < below, words)


def number(least: float = -math.inf, above: float = -math.inf, below: float = math.inf) -> Rule:
    """A finite number, not NaN."""
    return Rule(
        lambda x: type(x) in (int, float) and x >= least and above < x < below,
        _with_limits("a number", least, above, below),
    )


def _with_limits(kind: str, least: float, above: float, below: float) -> str:
    limits = [
        f"{word} {limit}"
        for word, limit in (("of at least", least), ("above", above), ("below", below))
        if math.isfinite(limit)
    ]
    return f"{kind} {' and '.join(limits)}".rstrip()


def one_of(*options: str) -> Rule:
    """One of some names."""
    return Rule(lambda x: x in options, f"one of {', '.join(x or repr('') for x in options)}")


def list_of(rule: Rule, words: str, lengths: tuple[int, ...] = (), empty: bool = True) -> Rule:
    """A list or tuple of what fits another rule."""

    def fits(x) -> bool:
        if not isinstance(x, list | tuple) or (lengths and len(x) not in lengths):
            return False
        return (empty or len(x) > 0) and all(map(rule.fits, x))

    return Rule(fits, f"a list of {words}")


def optional(rule: Rule, meaning: str) -> Rule:
    """None, or what fits another rule."""
    return Rule(lambda x: x is None or rule.fits(x), f"{rule.words}, or None for {meaning}")


def _is_device(value) -> bool:
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


def _is_norm(value) -> bool:
    try:
        get_norm(value, 32)
    except (KeyError, TypeError):
        return False
    return True


text = Rule(lambda x: isinstance(x, str), "text")
truth = Rule(lambda x: isinstance(x, bool), "True or False")
share = Rule(lambda x: type(x) in (int, float) and 0 <= x <= 1, "a number from 0 to 1")
device = Rule(_is_device, "a device that torch knows, e.g. cuda, cuda:1 or cpu")
# what exactly, depends on Detectron2's version
norm = Rule(_is_norm, "one of BN, SyncBN, FrozenBN, GN, LN, '' for none, or another of get_norm")
