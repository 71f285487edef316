"""Data sets that are named by where they are, ``<prefix>:<path>``; registered when used."""

from collections.abc import Callable, Iterable

from detectron2.data import DatasetCatalog

__all__ = ["add_prefix", "register_by_prefix"]

_PREFIXES: dict[str, Callable[[str, str], None]] = {}


def add_prefix(prefix: str, register: Callable[[str, str], None]) -> None:
    """Names that begin with ``<prefix>:`` are registered by ``register(name, path)``."""
    _PREFIXES[prefix] = register


def register_by_prefix(names: Iterable[str]) -> None:
    """Register those of the names that have a known prefix, and are not registered yet."""
    for name in names:
        prefix, colon, path = name.partition(":")
        if colon and prefix in _PREFIXES and name not in DatasetCatalog:
            _PREFIXES[prefix](name, path)
