"""People's labels in a student's classes, completed: ``DATASETS.TRAIN ("relabeled:FILE.json",)``.

FILE.json holds what a :class:`View` says, under the same keys.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_d2.checkpoint import atomic_write
from kd_d2.config.rules import (
    ConfigError,
    check_values,
    list_of,
    one_of,
    optional,
    share,
    text,
    truth,
)
from kd_d2.data.prefixes import add_prefix, register_by_prefix
from kd_d2.data.requirements import check_available
from kd_d2.registry import unknown_name

from .missing_classes import (
    Labelled,
    missing_boxes,
    read_labelled,
    renumbered,
    same_images,
    with_dropped,
)
from .trained_on import PREFIX as EXPORTED

PREFIX = "relabeled"
WAYS = ("pseudo", "mask", "background")

logger = logging.getLogger(__name__)

_names = list_of(text, "names, at least one", empty=False)
_RULES = {
    "datasets": _names,
    "classes": _names,
    "missing": one_of(*WAYS),
    "drop": list_of(text, "names"),
    "pseudo_labels": optional(text, "none"),
    "iou": share,
    "others": truth,
}


@dataclass(frozen=True)
class View:
    """Which labels are read, and how they are completed.

    The classes of the student that a data set does not have are missing in its labels, though
    objects of them may be on its images.

    Attributes:
        datasets: registered names with people's labels; all of them are read.
        classes: names of the student's classes, in the order of its outputs.
        missing: what becomes of missing classes. "pseudo": boxes of them are taken from the pseudo
            labels of the same image, and all that was found of them is to be ignored where the
            filter has dropped the image; "mask": none, but each record has its
            ``covered_classes``, for trainings that leave out what is unknown; "background": their
            objects count as background.
        drop: classes of the data sets or of the pseudo labels that the student does not have.
        pseudo_labels: folder that the stage export has written; of "pseudo" and ``others``.
        iou: a pseudo box is not added if its IoU with a labelled one, of any class, is larger.
        others: the pseudo-labelled images that are in none of the data sets are read, too.

    Raises:
        ConfigError: a value cannot be, or two do not fit together.
    """

    datasets: Sequence[str]
    classes: Sequence[str]
    missing: str
    drop: Sequence[str] = ()
    pseudo_labels: str | None = None
    iou: float = 0.7
    others: bool = False

    def __post_init__(self):
        check_values(vars(self), {"": _RULES})
        for key in ("datasets", "classes"):
            names = list(getattr(self, key))
            if twice := [x for x in names if names.count(x) > 1]:
                raise ConfigError(f"{key} has {twice[0]!r} more than once: name it once.")
        if both := [x for x in self.classes if x in self.drop]:
            raise ConfigError(f"{both[0]!r} is in classes and in drop: take it out of one of them.")
        if self.pseudo_labels is None and (self.missing == "pseudo" or self.others):
            wanting = "others is true" if self.others else "missing is 'pseudo'"
            raise ConfigError(
                f"{wanting}, but pseudo_labels is not given: give the folder that the stage export "
                "of tools/pseudo_label.py has written."
            )


def write_view(path: str | Path, view: View) -> None:
    """Writes the file of a view; it is there when it is whole, and so is its folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(str(path), "w") as f:
        json.dump(asdict(view), f, indent=1)


def read_view(path: str | Path) -> View:
    """
    Raises:
        ConfigError: there is no such file, or it holds no view.
    """
    known = {x.name: x.default is MISSING for x in fields(View)}
    form = f"a JSON mapping with the keys {', '.join(known)}"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give {form}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}): give {form}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}: give {form}.")
    if unknown := content.keys() - known:
        raise ConfigError(f"{path}: {unknown_name('key', min(unknown), known)}")
    if absent := [key for key, needed in known.items() if needed and key not in content]:
        raise ConfigError(f"{path} does not say what {' and '.join(absent)} are: add that.")
    try:
        return View(**content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def register_relabeled(name: str, file: str) -> None:
    """Registers a view; its data sets are not read before it is used.

    Args:
        name: of the data set.
        file: of the view. Relative paths in it start where the process does.

    Raises:
        ConfigError: see :func:`read_view`.
        ValueError: a data set is not registered, or there are no pseudo labels in their folder.
        FileNotFoundError: files of a data set are not there.
    """
    view = read_view(file)
    for inner in (x for x in view.datasets if x.startswith(f"{PREFIX}:")):
        if inner == name or not _is_simple(read_view(inner.removeprefix(f"{PREFIX}:"))):
            raise ConfigError(
                f"{file} names {inner}, which is such a file itself, and only one with missing "
                "'background' and no others can be built on: name the data sets in it."
            )
    check_available(dict.fromkeys(view.datasets, file))
    if view.pseudo_labels is not None:
        register_by_prefix([_exported(view)])
    DatasetCatalog.register(name, partial(_load, view))
    MetadataCatalog.get(name).set(
        thing_classes=list(view.classes),
        thing_dataset_id_to_contiguous_id={k: k for k in range(len(view.classes))},
        generated=True,
        only_for_training=True,
    )


def _is_simple(view: View) -> bool:
    return view.missing == "background" and not view.others


def _exported(view: View) -> str:
    return f"{EXPORTED}:{view.pseudo_labels}"


def _load(view: View) -> list[dict]:
    """The records of a view, those of the data sets first."""
    read = partial(read_labelled, classes=view.classes, drop=view.drop)
    people = [read(name) for name in view.datasets]
    parts, found = people, [[] for _ in people]
    completes = view.missing == "pseudo" and any(x.lacks_some for x in people)
    if completes or view.others:
        pseudo = read(_exported(view))
        seen = with_dropped(pseudo) if completes else pseudo
        found = [same_images(x.labels, seen.labels) for x in people]
    records = []
    for part, matches in zip(people, found, strict=True):
        if completes and part.lacks_some:
            records += _completed(part, pseudo, matches, view.iou)
        else:
            records += [(x, part.covered) for x in part.labels.dicts]
    if view.others:
        parts = [*people, pseudo]
        records += [(x, pseudo.covered) for x in _others(people, pseudo, found)]
    if view.missing == "background" or not any(x.lacks_some for x in parts):
        return [x for x, _ in records]
    return [x | {"covered_classes": sorted(covered)} for x, covered in records]


def _completed(
    part: Labelled, pseudo: Labelled, matches: Sequence[dict | None], iou: float
) -> list[tuple[dict, frozenset[int]]]:
    """Records with pseudo boxes of the missing classes, and which classes each covers now."""
    name, classes = part.labels.name, part.labels.classes
    if pseudo.covered <= part.covered:
        lacking = [x for k, x in enumerate(classes) if k not in part.covered]
        raise ConfigError(
            f"{pseudo.labels.name} has none of the classes that '{name}' lacks "
            f"({', '.join(lacking)}): give other pseudo labels, or set missing to 'mask' or "
            "'background'."
        )
    added = missing_boxes(part, pseudo, matches, iou)
    absent = matches.count(None)
    log = logger.warning if absent else logger.info
    log(
        f"{len(matches) - absent} of the {len(matches)} images of '{name}' are in "
        f"{pseudo.labels.name}, which adds {sum(map(len, added))} boxes of classes that are "
        f"missing{', and are background in the other images' if absent else ''}."
    )
    return [
        (
            record | {"annotations": record["annotations"] + more},
            part.covered | pseudo.covered if match else part.covered,
        )
        for record, match, more in zip(part.labels.dicts, matches, added, strict=True)
    ]


def _others(
    people: Sequence[Labelled], pseudo: Labelled, found: Sequence[Sequence[dict | None]]
) -> list[dict]:
    """The pseudo-labelled images that nobody has labelled."""
    labelled = {match["image_id"] for matches in found for match in matches if match}
    others = [x for x in pseudo.labels.dicts if x["image_id"] not in labelled]
    return renumbered(others, {x.get("image_id") for part in people for x in part.labels.dicts})


add_prefix(PREFIX, register_relabeled)
