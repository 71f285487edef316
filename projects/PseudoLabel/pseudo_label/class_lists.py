"""Which classes the student has in which phase, by name."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from kd_d2.config.rules import ConfigError
from kd_d2.data.requirements import check_available, class_names, read_class_names

from .recipe import export_folder, unified
from .trained_on import exported_classes


@dataclass(frozen=True)
class PhaseClasses:
    """
    Attributes:
        taught: the student's in phase B, in the order of its outputs: those of all teachers.
        labelled: those that people have labelled, of each data set; () without.
        final: the student's in phase C.
    """

    taught: tuple[str, ...]
    labelled: tuple[tuple[str, ...], ...]
    final: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes of phase C that one data set at least has no labels of.

        >>> PhaseClasses(("car", "dog"), (("car",), ("dog", "car")), ("car", "dog")).missing
        ('dog',)
        """
        return tuple(name for name in self.final if not all(name in x for x in self.labelled))

    def with_pseudo_labels(self) -> "PhaseClasses":
        """With pseudo-labelled images as one more data set of phase C."""
        return replace(self, labelled=(*self.labelled, self.taught))


def class_lists(cfg: CfgNode) -> PhaseClasses:
    """
    Raises:
        ConfigError: they contradict each other.
        ValueError, OSError: a teacher, a class map or a data set cannot be used.
    """
    node, unified, ordered = cfg.PSEUDO_LABEL, *_teachers_classes(cfg)
    tests = [classes_of(name, "DATASETS.TEST") for name in cfg.DATASETS.TEST]
    taught = unified if ordered else tuple(node.CLASSES) or _in_order(unified, tests)
    if sorted(taught) != sorted(unified) or tuple(node.CLASSES) not in ((), taught):
        raise ConfigError(
            f"PSEUDO_LABEL.CLASSES is {list(node.CLASSES)}, and the teachers' classes are "
            f"{list(unified)}: give these in {'this' if ordered else 'any'} order, or map the "
            "teachers' classes (PSEUDO_LABEL.CLASS_MAPS)."
        )
    if not node.LABELED:
        return PhaseClasses(taught, (), taught)
    lists = tuple(classes_of(name, "PSEUDO_LABEL.LABELED") for name in node.LABELED)
    labelled = dict.fromkeys(itertools.chain(*lists))
    final = tuple(node.PHASE_C.CLASSES) or taught
    if not node.PHASE_C.CLASSES:
        unknown = [name for name in labelled if name not in taught]
        if node.PHASE_C.MISSING == "drop":
            final = _in_order(tuple(c for c in taught if c in labelled), tests)
        if unknown:
            raise ConfigError(
                f"PSEUDO_LABEL.LABELED has the class{'es' * (len(unknown) > 1)} "
                f"{', '.join(unknown)}, which no teacher knows: list the student's classes in "
                "PSEUDO_LABEL.PHASE_C.CLASSES, with or without, or map the teachers' classes to "
                "these names."
            )
    classes = PhaseClasses(taught, lists, final)
    _check_final(classes, node.PHASE_C.MISSING)
    return classes


def _check_final(classes: PhaseClasses, missing: str) -> None:
    final, labelled = classes.final, dict.fromkeys(itertools.chain(*classes.labelled))
    if not set(final) & set(labelled):
        raise ConfigError(
            f"None of the student's classes ({', '.join(final)}) is one of PSEUDO_LABEL.LABELED's "
            f"({', '.join(labelled)}): map the teachers' classes (PSEUDO_LABEL.CLASS_MAPS)."
        )
    strange = [name for name in final if name not in {*classes.taught, *labelled}]
    if strange:
        raise ConfigError(
            f"PSEUDO_LABEL.PHASE_C.CLASSES has {', '.join(strange)}, which neither teachers nor "
            "labels know: leave it out."
        )
    if missing == "drop" and classes.missing:
        raise ConfigError(
            "PSEUDO_LABEL.PHASE_C.MISSING is drop, but the student keeps classes that not every "
            f"data set of LABELED has ({', '.join(classes.missing)}): list those that all have in "
            "PHASE_C.CLASSES, or set MISSING pseudo, mask or background."
        )


def _teachers_classes(cfg: CfgNode) -> tuple[tuple[str, ...], bool]:
    """The classes of all teachers, and whether labels that are there already have this order."""
    folder = export_folder(cfg)
    if "A" not in cfg.PSEUDO_LABEL.PHASES and os.path.isdir(folder):
        return tuple(exported_classes(folder)), True
    return unified(cfg).names, False


def _in_order(names: tuple[str, ...], orders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The names as the first of the lists has them that has the same."""
    return next((order for order in orders if sorted(order) == sorted(names)), names)


def classes_of(name: str, where: str) -> tuple[str, ...]:
    """Names of the classes of a data set; it is read, and must be there, if it tells them then.

    Args:
        where: it is named, for people.

    Raises:
        ValueError, OSError: it is unknown or cannot be read, or does not name its classes.
    """
    classes = class_names(name)
    if classes is None:
        check_available({name: where})
        classes = read_class_names(name)
    if not classes:
        raise ConfigError(f"The data set '{name}' does not name its classes (thing_classes).")
    return tuple(classes)
