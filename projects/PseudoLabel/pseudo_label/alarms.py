"""What to look at first: sentences on what is suspicious in a run, and what to do about it."""

from collections.abc import Callable, Iterator

from .setting_names import called
from .statistics import LEAST_BOXES, MOST_BOXES, ClassStatistics, Statistics

_FAILED, _UNCERTAIN, _WITHOUT, _CROWDED = 0.01, 0.25, 0.5, 0.01
_HIGH, _AGREE, _GOOD = 0.8, 0.2, 0.5


def alarms(statistics: Statistics) -> list[str]:
    """The gravest first; none if nothing is suspicious."""
    found: list[str] = []
    for look in (_of_images, _of_classes, _of_shares, _of_quality, _of_settings):
        found += look(statistics)
    return found


def _of_images(s: Statistics) -> Iterator[str]:
    images = s.images
    if not images["used"]:
        yield "No image is used, so there is nothing to train on: lower the thresholds."
        return
    if images["failed"] > _FAILED * images["all"]:
        yield (
            f"{_part(images['failed'], images['all'])} of the images could not be read: see why in "
            "errors.jsonl of the run, mend them, run generate again with --retry-failed, and then "
            "all other stages."
        )
    if images["uncertain"] > _UNCERTAIN * images["read"]:
        yield (
            f"{_part(images['uncertain'], images['read'])} of the images are dropped, because they "
            "have nothing sure but something that may be an object: raise "
            f"{called('t_ignore')}, or lower the thresholds, if the check sheet says that these "
            "detections are right."
        )
    if images["without_boxes"] > _WITHOUT * images["used"]:
        yield (
            f"{_part(images['without_boxes'], images['used'])} of the used images have no pseudo "
            "box, and teach that there is only background: look at the empty images on the check "
            f"sheet, and set {called('empty_images')} to drop if there are objects in them."
        )
    if s.boxes_per_image[MOST_BOXES] > _CROWDED * images["used"]:
        yield (
            f"{_part(s.boxes_per_image[MOST_BOXES], images['used'])} of the used images have "
            f"{MOST_BOXES} pseudo boxes or more: look at the fullest ones on the check sheet; "
            "doubles there call for a lower IoU at merging."
        )


def _of_classes(s: Statistics) -> Iterator[str]:
    unknown = [x.name for x in s.classes if not x.thresholds]
    if unknown:
        yield (
            f"No teacher knows {_names(unknown)}: the student cannot learn what nobody looks for; "
            "take another teacher, or leave it out."
        )
    missing = [x.name for x in s.classes if x.thresholds and not x.kept]
    if missing and s.images["used"]:
        yield (
            f"There is no pseudo box of {_names(missing)}: look at the highest dropped scores on "
            "the check sheet, and lower the threshold if they are right."
        )
    ignored = sum(x.ignored for x in s.classes)
    if ignored > s.kept > 0:
        yield (
            f"There are more ignore boxes ({ignored:,}) than pseudo boxes ({s.kept:,}): raise "
            f"{called('t_ignore')}, or lower the thresholds if the check sheet says that most are "
            "right."
        )


def _of_shares(s: Statistics) -> Iterator[str]:
    unlabelled = sorted((x for x in s.classes if x.unlabelled), key=lambda x: -x.kept)
    loud = [x for x in s.classes if x.alarm and not x.unlabelled]
    more = sorted((x for x in loud if x.share_ratio > 1), key=lambda x: -x.share_ratio)
    less = sorted((x for x in loud if x.share_ratio < 1), key=lambda x: x.share_ratio)

    def times(x: ClassStatistics) -> str:
        return f"{x.name} ({x.share_ratio:.2g} times)"

    if unlabelled:
        yield (
            f"{s.labelled} has not a single box of "
            f"{_names(unlabelled, lambda x: f'{x.name} ({x.kept:,} pseudo boxes)')}. Look at their "
            "lowest kept scores on the check sheet, and raise the threshold, or drop the class in "
            "the class map, if these are wrong."
        )
    if more:
        yield (
            f"Far more frequent than among the labels of {s.labelled}: "
            f"{_names(more, times)}. Look at their lowest kept scores on the check sheet, and "
            "raise the threshold if these are wrong."
        )
    if less:
        yield (
            f"Far less frequent than among the labels of {s.labelled}: "
            f"{_names(less, times)}. Look at their highest dropped scores on the check sheet, and "
            "lower the threshold if these are right."
        )


def _of_quality(s: Statistics) -> Iterator[str]:
    judged = [x for x in s.classes if x.quality is not None]
    wrong = [x for x in judged if x.quality.boxes >= LEAST_BOXES and x.quality.precision < _GOOD]
    if wrong:
        wrong.sort(key=lambda x: x.quality.precision)
        words = _names(wrong, lambda x: f"{x.name} ({100 * x.quality.precision:.0f} %)")
        yield (
            f"Fewer than half of the pseudo boxes are right where people have labelled: {words}. "
            "Raise the threshold, or check the class map."
        )
    missed = [
        x for x in judged if x.quality.objects >= LEAST_BOXES and x.quality.missing_rate > _GOOD
    ]
    if missed:
        missed.sort(key=lambda x: -x.quality.missing_rate)
        words = _names(missed, lambda x: f"{x.name} ({100 * x.quality.missing_rate:.0f} %)")
        yield (
            f"More than half of the labelled objects have no pseudo box: {words}. Lower the "
            "threshold, and train with ignore boxes, so that they do not become background."
        )


def _of_settings(s: Statistics) -> Iterator[str]:
    high = [x.name for x in s.classes if any(t > _HIGH for t in x.thresholds.values())]
    if high:
        yield (
            f"The threshold is above {_HIGH} for {_names(high)}: rare and small objects vanish at "
            "such scores; lower it unless precision matters more."
        )
    for a, others in s.agreement.items():
        for b, share in others.items():
            if share is not None and share < _AGREE:
                yield (
                    f"Only {100 * share:.0f} % of the boxes of {a} are found by {b}, too: check "
                    "their class maps and thresholds."
                )


def _part(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)"


def _names(items: list, words: Callable = str, most: int = 6) -> str:
    """Some of them, and how many more there are.

    >>> _names(["cat", "dog", "bird"], most=2)
    'cat, dog and 1 more'
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(words, items[:most])) + more
