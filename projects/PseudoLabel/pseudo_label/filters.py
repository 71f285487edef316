"""Which of the detections become pseudo boxes, which make the training look away, and which go.

Symbols: n detections, k images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kd_d2.config.rules import (
    ConfigError,
    Rule,
    check_values,
    number,
    one_of,
    optional,
    share,
    whole,
)

from .detections import Detections
from .overlaps import overlapping, place_in_group, without_overlapped
from .setting_names import called
from .shards import AMBIGUOUS, EMPTY, FAILED, UNCERTAIN, USED

EMPTY_IMAGES = ("auto", "keep", "drop")
_MARGIN, _LEAST = 0.2, 0.1  # of the band of ignore boxes
_ABOVE_0 = Rule(lambda x: share.fits(x) and x > 0, "a number above 0, and 1 at most")
RULES = {
    "t_ignore": optional(_ABOVE_0, "0.2 below the threshold"),
    "min_side": number(least=0),
    "min_area": number(least=0),
    "max_aspect": number(least=1),
    "duplicate_iou": optional(_ABOVE_0, "none"),
    "max_boxes": whole(1),
    "min_agreement": optional(share, "none"),
    "empty_images": one_of(*EMPTY_IMAGES),
    "max_ambiguous_ratio": optional(share, "none"),
}


@dataclass(frozen=True)
class FilterSettings:
    """
    Attributes:
        t_ignore: lowest score of an ignore box, for all classes; None: 0.2 below the threshold of
            each, but at least 0.1.
        min_side, min_area: in pixels; smaller boxes go.
        max_aspect: longer side over shorter one; longer boxes go.
        duplicate_iou: of boxes of different classes that overlap by this or more, the better stays;
            None: all stay.
        max_boxes: pseudo boxes of an image; the others become ignore boxes.
        min_agreement: pseudo boxes with less agreement become ignore boxes; None: none.
        empty_images: what becomes of an image without pseudo box: "keep" it as one without objects,
            "drop" it, or "auto": drop it if any score of any teacher reaches ``t_ignore``.
        max_ambiguous_ratio: images with a larger share of ignore boxes among all boxes are dropped;
            None: none.

    Raises:
        ConfigError: with one sentence on the first value that cannot be.
    """

    t_ignore: float | None = None
    min_side: float = 4.0
    min_area: float = 16.0
    max_aspect: float = 12.0
    duplicate_iou: float | None = None
    max_boxes: int = 100
    min_agreement: float | None = None
    empty_images: str = "auto"
    max_ambiguous_ratio: float | None = None

    def __post_init__(self):
        values = {called(key): value for key, value in vars(self).items()}
        check_values(values, {"": {called(key): rule for key, rule in RULES.items()}})


def check_mirrored(settings: FilterSettings, mirrored: bool) -> None:
    """
    Args:
        mirrored: whether the teachers look, or have looked, at mirrored images, too.

    Raises:
        ConfigError: they do not, and agreement with these is asked for.
    """
    if settings.min_agreement is not None and not mirrored:
        raise ConfigError(
            f"{called('min_agreement')} needs to know what the teacher finds in the mirrored "
            "images: generate with that (PSEUDO_LABEL.GENERATE.FLIP, --flip), or leave it out."
        )


class Filtered(NamedTuple):
    """What filters make of detections.

    Attributes:
        pseudo, ignore: by image and then by falling score.
        counters: filter -> how many fell to it, in the order of the filters. Those of "clipped"
            were only cut, and those of "uncertain", "too_many" and "disagreeing" became ignore
            boxes; all others are gone.
    """

    pseudo: Detections
    ignore: Detections
    counters: dict[str, int]


def default_t_ignore(t_keep: np.ndarray) -> np.ndarray:
    """Where the band of ignore boxes begins below a threshold.

    >>> default_t_ignore(np.array([0.5, 0.25, 0.05])).round(6).tolist()
    [0.3, 0.1, 0.05]
    """
    return np.minimum(np.maximum(np.asarray(t_keep) - _MARGIN, _LEAST), t_keep)


def check_t_ignore(
    t_ignore: float | None, t_keep: np.ndarray, categories: Sequence[str], may: bool = False
) -> None:
    """Whether ignore boxes begin below every threshold.

    Args:
        t_keep: (C,) threshold of each class.
        may: these are what the classes may get at least, and not what they have.

    Raises:
        ConfigError: they do not.
    """
    if t_ignore is None or t_ignore <= t_keep.min():
        return
    name = categories[t_keep.argmin()]
    raise ConfigError(
        f"{called('t_ignore')} is {t_ignore}, above the threshold {t_keep.min():.4g} "
        f"{f'that {name!r} may get' if may else f'of {name!r}'}: give a lower one, or none."
    )


def reliable(agreement: np.ndarray, least: float = 0.7) -> np.ndarray:
    """(n,) bool, which boxes the teacher found in the mirrored image, too; nan is not.

    >>> reliable(np.array([0.92625, 0.69, np.nan])).tolist()
    [True, False, False]
    """
    return agreement >= np.float32(least)


def filter_detections(
    d: Detections,
    t_keep: np.ndarray,
    t_ignore: np.ndarray,
    sizes: np.ndarray,
    settings: FilterSettings,
) -> Filtered:
    """All filters, one after the other.

    Args:
        t_keep, t_ignore: (n,) thresholds of each detection.
        sizes: (n, 2) height and width of its image.
    """
    t_keep, t_ignore = np.float32(t_keep), np.float32(t_ignore)
    counters: dict[str, int] = {}
    alive = np.ones(len(d), bool)

    def drop(name: str, bad: np.ndarray) -> None:
        nonlocal alive
        counters[name] = int((alive & bad).sum())
        alive = alive & ~bad

    drop("invalid", ~_valid(d))
    d = d[np.arange(len(d))]  # a copy
    cut = np.clip(d.box, 0, np.tile(sizes[:, ::-1], 2).reshape(-1, 4)).astype(np.float32)
    counters["clipped"] = int((alive & (cut != d.box).any(1)).sum())
    d.box = cut
    with np.errstate(invalid="ignore"):
        sides = d.box[:, 2:].astype(np.float64) - d.box[:, :2]
    short, long_ = sides.min(1), sides.max(1)
    drop("small", ~((short >= settings.min_side) & (short * long_ >= settings.min_area)))
    drop("elongated", ~(long_ <= settings.max_aspect * short))
    drop("low_score", ~(d.score >= t_ignore))
    pseudo = alive & (d.score >= t_keep)
    counters["uncertain"] = int((alive & ~pseudo).sum())
    drop("duplicate", _duplicates(d, alive, pseudo, settings.duplicate_iou))
    pseudo &= alive

    def doubt(name: str, bad: np.ndarray) -> None:
        nonlocal pseudo
        counters[name] = int((pseudo & bad).sum())
        pseudo = pseudo & ~bad

    doubt("too_many", _beyond(d, pseudo, settings.max_boxes))
    doubt("disagreeing", _disagreeing(d, settings.min_agreement))
    return Filtered(d[pseudo].by_image(), d[alive & ~pseudo].by_image(), counters)


def _valid(d: Detections) -> np.ndarray:
    finite = np.isfinite(d.box).all(1) & np.isfinite(d.score)
    return finite & (d.box[:, 2:] >= d.box[:, :2]).all(1)


def _duplicates(
    d: Detections, alive: np.ndarray, pseudo: np.ndarray, least: float | None
) -> np.ndarray:
    """(n,) bool, boxes with a better one of another class on them; any pseudo box is better than an
    ignore box, and of equal scores the first."""
    duplicate = np.zeros(len(d), bool)
    if least is None:
        return duplicate
    order = np.lexsort((-d.score, ~pseudo))
    order = order[alive[order]]
    image, box, category = d.image[order], d.box[order], d.category[order]
    i, j, _ = overlapping(image, box, image, box, least)
    pairs = (i < j) & (category[i] != category[j])
    duplicate[order[~without_overlapped(len(order), i[pairs], j[pairs])]] = True
    return duplicate


def _beyond(d: Detections, chosen: np.ndarray, most: int) -> np.ndarray:
    """(n,) bool, those of the chosen that are not among the ``most`` best ones of their image."""
    order = np.lexsort((-d.score, d.image))
    order = order[chosen[order]]
    beyond = np.zeros(len(d), bool)
    beyond[order[place_in_group(d.image[order]) >= most]] = True
    return beyond


def _disagreeing(d: Detections, least: float | None) -> np.ndarray:
    return np.zeros(len(d), bool) if least is None else ~reliable(d.agreement, least)


def image_status(
    num_pseudo: np.ndarray,
    num_ignore: np.ndarray,
    hopeful: np.ndarray,
    failed: np.ndarray,
    settings: FilterSettings,
) -> np.ndarray:
    """What becomes of each image, the constants of ``shards``.

    Args:
        num_pseudo, num_ignore: (k,) boxes of each.
        hopeful: (k,) bool, those with any score of any teacher that reaches ``t_ignore``, whatever
            merging and filters have made of it.
        failed: (k,) bool, those that cannot be read.

    Returns:
        (k,) int8.

    >>> pseudo, ignore = np.array([3, 0, 0, 0]), np.array([0, 2, 0, 0])
    >>> failed = np.array([False, False, False, True])
    >>> image_status(pseudo, ignore, ignore > 0, failed, FilterSettings()).tolist()
    [0, 2, 0, 1]
    """
    status = np.full(len(num_pseudo), USED, np.int8)
    if settings.max_ambiguous_ratio is not None:
        share = num_ignore / np.maximum(num_pseudo + num_ignore, 1)
        status[share > settings.max_ambiguous_ratio] = AMBIGUOUS
    empty = num_pseudo == 0
    if settings.empty_images == "drop":
        status[empty] = EMPTY
    elif settings.empty_images == "auto":
        status[empty & hopeful] = UNCERTAIN
    status[failed] = FAILED
    return status
