"""The tables of a report, as text cells that Markdown and HTML both show."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .label_quality import Quality
from .statistics import AREAS, LEAST_BOXES, MOST_OFTEN, ClassStatistics, Statistics

FILTERS = {
    "invalid": "numbers that are none, or a negative size",
    "clipped": "reached out of the image; only cut",
    "small": "too small",
    "elongated": "too long and thin",
    "low_score": "score below t_ignore",
    "uncertain": "score from t_ignore to t_keep; now ignore boxes",
    "duplicate": "on a better box of another class",
    "too_many": "beyond the most boxes of an image; now ignore boxes",
    "disagreeing": "not found in the mirrored image; now ignore boxes",
    "of_dropped_images": "boxes of images that are dropped",
}
_TEACHERS_OWN = (
    "Precision, recall and AP are too good if a teacher was trained on the images that they are "
    "measured on: on its own training images its labels are better than on others."
)
_IMAGES = {
    "all": "in the list",
    "failed": "could not be read",
    "used": "used",
    "without_boxes": "of these without pseudo box, taken for true negatives",
    "uncertain": "dropped: no pseudo box, but something that may be an object",
    "ambiguous": "dropped: too many ignore boxes",
    "empty": "dropped: no pseudo box",
}


@dataclass
class Table:
    """
    Attributes:
        note: what the columns are.
        head: the columns' names; the first column holds names, the others numbers.
        loud: numbers of the rows that raise an alarm.
        has_words: whether the last column holds words.
    """

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    loud: set[int] = field(default_factory=set)
    has_words: bool = False


def tables(s: Statistics) -> list[Table]:
    """All but that of the classes; those without content are left out."""
    found = [_images(s), _sources(s), _sizes(s), _filters(s), _agreement(s), _throughput(s)]
    return [x for x in found if x.rows]


def caution(s: Statistics) -> str:
    """What to mind at the figures of quality; empty if there are none."""
    return "" if s.quality is None else _TEACHERS_OWN


def by_count(s: Statistics) -> list[ClassStatistics]:
    """The classes, the most frequent first; of equal ones in their own order."""
    return sorted(s.classes, key=lambda x: -x.kept)


def class_table(s: Statistics) -> Table:
    """A row for each class, in the order of :func:`by_count`."""
    groups = [_counts(s), *([_shares(s)] * (s.labelled is not None))]
    classes = by_count(s)
    head, notes = ["class"], []
    rows = [[x.name] for x in classes]
    for names, note, cells in groups:
        head, notes = head + names, [*notes, note]
        rows = [row + cells(x) for row, x in zip(rows, classes)]
    if s.quality is not None:
        rows = [row + _quality(x.quality) for row, x in zip(rows, classes)]
        rows.append(["all classes", *[""] * (len(head) - 1), *_quality(s.quality)])
        head += ["objects", "precision", "recall", "F1", "AP", "IoU", "missing"]
        notes.append(
            f"From objects on: in {s.quality_images['used']} used images that people have "
            "labelled, greedy by score at an IoU of 0.5; IoU: mean of the right boxes; missing: "
            "share of the objects without a box."
        )
    loud = {i for i, x in enumerate(classes) if x.alarm}
    return Table("Classes", " ".join(notes), head, rows, loud)


_Columns = tuple[list[str], str, Callable[[ClassStatistics], list[str]]]
"""Names of columns, what they are, and the cells of a class."""


def _counts(s: Statistics) -> _Columns:
    head = ["kept", "ignored", "raw", "t_keep", "t_ignore"]
    note = (
        "kept: pseudo boxes and ignored: ignore boxes, both of the images that are used; raw: "
        "merged detections. t_keep, t_ignore: thresholds of their scores."
    )
    several = any(len(x.thresholds) > 1 for x in s.classes)
    if several:
        head.append("teachers' t")
        note += " teachers' t: threshold of each teacher that knows the class, on its own scale."

    def cells(x: ClassStatistics) -> list[str]:
        found = [f"{n:,}" for n in (x.kept, x.ignored, x.raw)]
        found += [_number(t, 2) for t in (x.t_keep, x.t_ignore)]
        own = " / ".join(_number(t, 2) for t in x.thresholds.values())
        return found + [own] * several

    return head, note, cells


def _shares(s: Statistics) -> _Columns:
    note = (
        f"share: among the boxes of the classes that {s.labelled} knows; labelled: the same of its "
        f"boxes; a ratio above {MOST_OFTEN:g} or below 1/{MOST_OFTEN:g} raises an alarm (!), as do "
        f"{LEAST_BOXES} boxes of a class without any label."
    )

    def cells(x: ClassStatistics) -> list[str]:
        ratio = _number(x.share_ratio, 2) + " !" * x.alarm
        return [_percent(x.share), _percent(x.labelled_share), ratio]

    return ["share", "labelled", "ratio"], note, cells


def _images(s: Statistics) -> Table:
    rows = [
        [words, f"{s.images[key]:,}", _percent(_share(s.images[key], s.images["all"]))]
        for key, words in _IMAGES.items()
    ]
    if s.quality_images is not None:
        for key, words in (
            ("used", "labelled by people, and used"),
            ("dropped", "labelled by people, and dropped"),
        ):
            n = s.quality_images[key]
            rows.append([words, f"{n:,}", _percent(_share(n, s.images["all"]))])
    return Table("Images", "", ["images", "number", "share"], rows)


def _sources(s: Statistics) -> Table:
    rows = [
        [name, f"{q.boxes:,}", *_shares_right(q)] for name, q in (s.quality_by_source or {}).items()
    ]
    note = "As for the classes: in used images that people have labelled, at an IoU of 0.5."
    head = ["source", "boxes", "objects", "precision", "recall", "F1"]
    return Table("Quality by source of the images", note, head, rows)


def _sizes(s: Statistics) -> Table:
    words = {"small": "area below 32²", "medium": "32² to 96²", "large": "96² or more"}
    rows = [
        [f"{x} ({words[x]})", f"{s.sizes[x]:,}", _percent(_share(s.sizes[x], s.kept))]
        for x in AREAS
    ]
    return Table("Sizes of the pseudo boxes", "", ["size", "number", "share"], rows)


def _filters(s: Statistics) -> Table:
    rows = [[key.replace("_", " "), f"{n:,}", FILTERS.get(key, "")] for key, n in s.filters.items()]
    note, head = "Detections that fell to each.", ["filter", "number", "what they are"]
    return Table("Filters", note, head, rows, has_words=True)


def _agreement(s: Statistics) -> Table:
    names = list(s.agreement)
    rows = [
        [a, *("" if a == b else _percent(s.agreement[a].get(b)) for b in names)]
        for a in (names if len(names) > 1 else [])
    ]
    note = (
        "Row by row: the share of a teacher's boxes that each other one has found, too, of the "
        "same class and at an IoU of 0.5."
    )
    return Table("Agreement of the teachers", note, ["teacher", *names], rows)


def _throughput(s: Statistics) -> Table:
    rows = [
        [
            name,
            f"{x['images_done']:,}",
            f"{x['seconds']:,.0f}",
            _number(x["images_per_second"], 2),
            str(x["workers"]),
        ]
        for name, x in s.throughput.items()
    ]
    note = (
        "images: also those of shards that were begun and not finished; seconds: of all processes "
        "added up, but for those that were killed; per second: images of one process."
    )
    return Table("Speed", note, ["teacher", "images", "seconds", "per second", "processes"], rows)


def _quality(q: Quality | None) -> list[str]:
    if q is None:
        return [""] * 7
    return [
        *_shares_right(q),
        _number(q.ap, 1),
        _number(q.mean_iou, 2),
        _percent(q.missing_rate),
    ]


def _shares_right(q: Quality) -> list[str]:
    return [f"{q.objects:,}", *(_number(x, 2) for x in (q.precision, q.recall, q.f1))]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(x: float | None, digits: int) -> str:
    return "–" if x is None else f"{x:.{digits}f}"


def markdown(table: Table) -> str:
    r"""A table in Markdown.

    >>> print(markdown(Table("Classes", "", ["class", "kept"], [["a|b", "3"]])))
    | class | kept |
    | :--- | ---: |
    | a\|b | 3 |
    """
    marks = [":---", *["---:"] * (len(table.head) - 1)]
    if table.has_words:
        marks[-1] = ":---"
    lines = [table.head, marks, *table.rows]
    return "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in lines)
