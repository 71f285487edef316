"""What arguments of the command line name: data sets and files."""

import json
from pathlib import Path

from detectron2.data import DatasetCatalog

from kd_d2.config.rules import ConfigError
from kd_d2.data.requirements import read_class_names

from .label_set import LabelSet, read_label_set


def pair(argument: str, text: str) -> tuple[str, str]:
    """
    >>> pair("--class-map", "big=big.yaml")
    ('big', 'big.yaml')
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{argument} is {text!r}: it must be NAME=FILE.")
    return name, value


def label_set(argument: str, name: str | None) -> LabelSet | None:
    """The labels of a data set.

    Raises:
        ValueError, OSError: see ``read_label_set``.
    """
    return None if name is None else read_label_set(name, argument)


def class_names(name_or_file: str | None) -> tuple[str, ...]:
    """The classes of a registered data set, or the lines of a text file that are not empty.

    Raises:
        ConfigError: it is neither, or names no class.
        ValueError, OSError: the data set cannot be read.
    """
    if name_or_file is None:
        return ()
    if name_or_file in DatasetCatalog:
        names = tuple(read_class_names(name_or_file) or ())
    else:
        try:
            text = Path(name_or_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--classes {name_or_file} is no data set, and no text file that can be read "
                f"({error}): give one that names a class in each line."
            ) from None
        names = tuple(filter(None, map(str.strip, text.splitlines())))
    if not names:
        raise ConfigError(f"--classes {name_or_file} names no class: give one that does.")
    return names


def category_ids(path: str | None) -> dict[str, int] | None:
    """Class -> id, of a JSON file that says just that, or of one in COCO's format.

    Raises:
        ConfigError: it cannot be read.
    """
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if "categories" in content:
            ids = {x["name"]: x["id"] for x in content["categories"]}
        else:
            ids = dict(content.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"--category-ids {path} cannot be read ({error}): give a JSON file of class -> id, or "
            "one in COCO's format."
        ) from None
    for name, i in ids.items():
        if type(i) is not int:
            raise ConfigError(
                f"--category-ids {path}: {name!r} has the id {i!r}; an id is a whole number."
            )
    return ids
