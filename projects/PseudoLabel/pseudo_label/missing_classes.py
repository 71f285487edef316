"""Labels in the classes of a student, and pseudo boxes of those that people have not labelled."""

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from detectron2.data import MetadataCatalog

from kd_d2.config.rules import ConfigError

from .label_set import LabelSet, find_record, labelled_records
from .overlaps import overlapping
from .run_folder import ImageRecord
from .trained_on import dropped_images


@dataclass(frozen=True)
class Labelled:
    """A data set in the classes of a student.

    Attributes:
        own: the data set as it was.
        labels: the same images in the same order, with the student's classes. Boxes of other
            classes are left out.
        covered: numbers of the student's classes that the data set has.
    """

    own: LabelSet
    labels: LabelSet
    covered: frozenset[int]

    @property
    def lacks_some(self) -> bool:
        """Whether the student has a class that the data set does not have."""
        return len(self.covered) < len(self.labels.classes)


def read_labelled(name: str, classes: Sequence[str], drop: Sequence[str]) -> Labelled:
    """Reads a registered data set.

    Args:
        classes: of the student, in the order of its outputs.
        drop: classes that the student does not have.

    Raises:
        ConfigError: there are images without labels, no boxes at all, a class that is in neither
            list, or none that the student has.
        ValueError: it cannot be read.
    """
    records = labelled_records(name)
    own = MetadataCatalog.get(name).get("thing_classes")
    if own is None:
        raise ConfigError(
            f"The data set '{name}' does not say which classes it has: set thing_classes of its "
            "metadata where it is registered."
        )
    if unknown := [x for x in own if x not in classes and x not in drop]:
        raise ConfigError(
            f"The data set '{name}' has classes that the student does not have "
            f"({', '.join(unknown)}): add them to classes or to drop."
        )
    covered = frozenset(_numbers(own, classes).values())
    if not covered:
        raise ConfigError(
            f"The data set '{name}' has none of the student's classes ({', '.join(classes)}): "
            "leave it out."
        )
    renamed = _renamed(records, own, classes)
    return Labelled(LabelSet(records, own, name), LabelSet(renamed, classes, name), covered)


def _numbers(own: Sequence[str], classes: Sequence[str]) -> dict[int, int]:
    """A data set's number of a class -> the student's, of those that both have."""
    return {k: classes.index(x) for k, x in enumerate(own) if x in classes}


def _renamed(records: Sequence[Mapping], own: Sequence[str], classes: Sequence[str]) -> list[dict]:
    """Records with the student's numbers of classes; boxes of other classes are left out."""
    number = _numbers(own, classes)
    return [
        record
        | {
            "annotations": [
                a | {"category_id": number[a["category_id"]]}
                for a in record["annotations"]
                if a["category_id"] in number
            ]
        }
        for record in records
    ]


def with_dropped(pseudo: Labelled) -> Labelled:
    """Exported labels, and the images that the filter has dropped with boxes to ignore."""
    own, labels = pseudo.own, pseudo.labels
    more = _renamed(dropped_images(own.name), own.classes, labels.classes)
    return replace(pseudo, labels=replace(labels, dicts=[*labels.dicts, *more]))


def same_images(people: LabelSet, pseudo: LabelSet) -> list[dict | None]:
    """For each labelled image its record in the pseudo labels, or None.

    It is of the same path or, where images were moved or copied, of the same id and file name; but
    then two files of different size are images that happen to be called alike.
    """
    real = [x | {"file_name": os.path.realpath(x["file_name"])} for x in pseudo.dicts]
    by_file = replace(pseudo, dicts=real).by_file()
    matches = []
    for record in people.dicts:
        file = os.path.realpath(record["file_name"])
        match = find_record(by_file, ImageRecord(file, "", record.get("image_id"), ""))
        matches.append(match if match and _may_be_equal(file, match["file_name"]) else None)
    return matches


def _may_be_equal(file: str, other: str) -> bool:
    if file == other or not (os.path.isfile(file) and os.path.isfile(other)):
        return True
    return os.path.getsize(file) == os.path.getsize(other)


def missing_boxes(
    people: Labelled, pseudo: Labelled, matches: Sequence[dict | None], iou: float
) -> list[list[dict]]:
    """Pseudo boxes of the classes that people have not labelled.

    Args:
        matches: of :func:`same_images`.
        iou: a pseudo box whose IoU with a labelled one, of any class, is larger is left out. Those
            to ignore stay.

    Returns:
        annotations for each labelled image.
    """
    new = pseudo.covered - people.covered
    added = [[a for a in _of(match) if a["category_id"] in new] for match in matches]
    some = [k for k, annotations in enumerate(added) if annotations]
    boxes = pseudo.labels.boxes(
        [(k, {"annotations": added[k]}) for k in some], pseudo.labels.classes
    )
    labels = people.own.boxes([(k, people.own.dicts[k]) for k in some], people.own.classes)
    i, _, share = overlapping(boxes.image, boxes.box, labels.image, labels.box, iou)
    doubled = set(i[share > iou].tolist())
    number = itertools.count()
    return [
        [a for a in annotations if next(number) not in doubled or a.get("ignore", 0)]
        for annotations in added
    ]


def _of(match: dict | None) -> list[dict]:
    return match["annotations"] if match else []


def renumbered(records: Sequence[dict], taken: Collection[int | str | None]) -> list[dict]:
    """The records with other image ids, all of them, if one of theirs is taken.

    >>> [x["image_id"] for x in renumbered([{"image_id": 3}, {"image_id": 9}], {1, 3})]
    [4, 5]
    >>> [x["image_id"] for x in renumbered([{"image_id": 2}, {"image_id": 9}], {1, 3})]
    [2, 9]
    """
    if not any(x["image_id"] in taken for x in records):
        return list(records)
    first = max((x for x in taken if isinstance(x, int)), default=0) + 1
    return [x | {"image_id": k} for k, x in enumerate(records, first)]
