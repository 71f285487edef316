"""From the classes of several teachers to one list of classes.

A class map says for each class of a teacher what it is called in the unified list, or ``drop``. It
is a YAML or JSON file, a mapping of names or, with more to say:

    classes: {person: person, sedan: car, coupe: car, banana: drop}
    allow_unmatched: false   # true: drop the classes that are not listed
    children: {car: vehicle}   # of unified classes: on the same object, the car is kept
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kd_d2.config.rules import ConfigError
from kd_d2.registry import unknown_name

DROP = "drop"
_KEYS = {"classes", "allow_unmatched", "children"}


class ClassMapError(ValueError):
    """A class map that cannot work; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Unified:
    """The classes of all teachers together.

    Attributes:
        names: of the C unified classes.
        lookup: for each teacher, by its own number of a class: int16 number of the unified class,
            -1 for those that are dropped.
        known_by: for each unified class, the numbers of the teachers that know it.
    """

    names: tuple[str, ...]
    lookup: tuple[np.ndarray, ...]
    known_by: tuple[tuple[int, ...], ...]

    def known_to(self, teachers: Sequence[str]) -> dict[str, list[str]]:
        """Names of the unified classes that each teacher knows.

        Args:
            teachers: their names, by their numbers.
        """
        return {
            teacher: [name for name, by in zip(self.names, self.known_by) if number in by]
            for number, teacher in enumerate(teachers)
        }

    @property
    def known(self) -> np.ndarray:
        """(C,) how many teachers know each class."""
        return np.array([len(teachers) for teachers in self.known_by])


def unify(maps: Sequence[Mapping[int, str | None]], order: Sequence[str] = ()) -> Unified:
    """
    Args:
        maps: of each teacher, own number of a class, from 0 without gaps -> unified name, or None
            for a class that is dropped.
        order: all unified names, each once; none: the order in which the teachers' own lists first
            name them.

    Returns:
        the unified classes in that order.

    Raises:
        ClassMapError: no class is left.
        ConfigError: the order lacks a name, or has one that is none of the teachers'.

    >>> unified = unify([{0: "person", 1: None, 2: "car"}, {0: "car", 1: "helmet"}])
    >>> unified.names, unified.known_by
    (('person', 'car', 'helmet'), ((0,), (0, 1), (1,)))
    >>> [x.tolist() for x in unified.lookup]
    [[0, -1, 1], [1, 2]]
    >>> unify([{0: "person", 1: "car"}], ["car", "person"]).lookup[0].tolist()
    [1, 0]
    """
    own = [[classes[number] for number in sorted(classes)] for classes in maps]
    names = tuple(dict.fromkeys(name for classes in own for name in classes if name is not None))
    if not names:
        raise ClassMapError("The class maps drop all classes of all teachers: keep at least one.")
    if order:
        _check_order(order, names)
        names = tuple(order)
    number = {name: k for k, name in enumerate(names)} | {None: -1}
    lookup = tuple(np.array([number[name] for name in classes], np.int16) for classes in own)
    known_by = tuple(tuple(t for t, own_ in enumerate(own) if name in own_) for name in names)
    return Unified(names, lookup, known_by)


def _check_order(order: Sequence[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in order]
    surplus = [name for name in order if name not in names]
    faults = [f"lack {_some(missing)}"] * bool(missing)
    faults += [f"name {_some(surplus)}, which no teacher has"] * bool(surplus)
    if faults:
        raise ConfigError(
            f"The classes {' and '.join(faults)}: they must be the teachers' classes, as the class "
            "maps call them, all of them and no others."
        )


def identity(classes: Sequence[str]) -> dict[int, str | None]:
    """The map of a teacher without a file: every class keeps its name."""
    return dict(enumerate(classes))


def read_class_map(path: str | Path, classes: Sequence[str]) -> dict[int, str | None]:
    """Reads what the file says of a teacher with these classes.

    Returns:
        own number of a class -> unified name, or None if it is dropped.

    Raises:
        ClassMapError: it cannot be read, names a class that the teacher has not, or lacks one.
    """
    content = _read(path)
    targets = content["classes"]
    for name, target in targets.items():
        if name not in classes:
            raise ClassMapError(f"{path}: {unknown_name('class of the teacher', name, classes)}")
        if not isinstance(target, str) or not target:
            raise ClassMapError(
                f"{path}: class {name!r} is mapped to {target!r}; give one unified name, or {DROP}."
            )
    missing = [name for name in classes if name not in targets]
    if missing and not content["allow_unmatched"]:
        raise ClassMapError(
            f"{path} does not map {_some(missing)}: add {'it' if len(missing) == 1 else 'them'}, "
            f"map to {DROP}, or set allow_unmatched: true to drop all that are not listed."
        )
    found = (targets.get(name, DROP) for name in classes)
    return {k: None if target == DROP else target for k, target in enumerate(found)}


def map_of(classes: Sequence[str], path: str | Path | None) -> dict[int, str | None]:
    """The map of a teacher: that of its file, see :func:`read_class_map`, if it has one."""
    return identity(classes) if path is None else read_class_map(path, classes)


def read_parents(paths: Sequence[str | Path], names: Sequence[str]) -> dict[int, int]:
    """What the ``children`` of all files say, by numbers of unified classes: child -> parent.

    Raises:
        ClassMapError: an unknown class, two parents of one child, or a class among its own parents.
    """
    parents: dict[str, str] = {}
    for path in paths:
        for child, parent in _read(path)["children"].items():
            for name in (child, parent):
                if name not in names:
                    raise ClassMapError(f"{path}: {unknown_name('unified class', name, names)}")
            if parents.setdefault(child, parent) != parent:
                raise ClassMapError(
                    f"{path}: {child!r} is a child of {parent!r} here and of {parents[child]!r} in "
                    "another class map; keep one of them."
                )
    for name in parents:
        line = [name]
        while line[-1] in parents:
            line.append(parents[line[-1]])
            if line[-1] == name:
                raise ClassMapError(
                    f"The children of the class maps go in a circle: {' -> '.join(line)}."
                )
            if len(line) > len(parents):
                break  # it runs into a circle without being part of it
    number = {name: k for k, name in enumerate(names)}
    return {number[child]: number[parent] for child, parent in parents.items()}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


class _StrictLoader(yaml.BaseLoader):
    """Reads all values as texts, so that a class may be called ``no`` or ``1``; no key twice."""

    def construct_mapping(self, node, deep=False):
        return _no_key_twice(self.construct_pairs(node, deep=True))


def _no_key_twice(pairs: Sequence[tuple[Any, Any]]) -> dict:
    content: dict = {}
    for key, value in pairs:
        if key in content:
            raise ClassMapError(f"{key!r} stands there twice; a class can become only one")
        content[key] = value
    return content


def _read(path: str | Path) -> dict[str, Any]:
    """The content of a class map in its long form."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_no_key_twice)
        else:
            content = yaml.load(text, _StrictLoader)
    except OSError as error:
        raise ClassMapError(f"The class map {path} cannot be read: {error.strerror}.") from None
    except ClassMapError as error:
        raise ClassMapError(f"{path}: {error}.") from None
    except RecursionError:
        raise ClassMapError(
            f"{path} is nested too deeply: it must be a mapping of class names, such as "
            "{sedan: car}."
        ) from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ClassMapError(f"{path} is neither YAML nor JSON: {reason}.") from None
    if not isinstance(content, dict) or not content:
        raise ClassMapError(f"{path} must be a mapping of class names, such as {{sedan: car}}.")
    return _long_form(path, content)


def _long_form(path: str | Path, content: dict) -> dict[str, Any]:
    if not isinstance(content.get("classes"), dict):
        content = {"classes": content}
    children = content.get("children") or {}
    allow = str(content.get("allow_unmatched", False)).lower()
    unknown = set(content) - _KEYS
    if unknown:
        raise ClassMapError(f"{path}: {unknown_name('key', min(unknown), _KEYS)}")
    if allow not in ("true", "false"):
        raise ClassMapError(f"{path}: allow_unmatched is {allow!r}; it must be true or false.")
    if not isinstance(children, dict) or not all(isinstance(x, str) for x in children.values()):
        raise ClassMapError(f"{path}: children must be a mapping of child: parent.")
    for name in (*content["classes"].values(), *children, *children.values()):
        if isinstance(name, str) and name != name.strip():  # else " car" is another class
            raise ClassMapError(f"{path}: {name!r} begins or ends with a blank: remove it.")
    return {
        "classes": content["classes"],
        "allow_unmatched": allow == "true",
        "children": children,
    }
