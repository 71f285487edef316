"""Which score a teacher's detection must have to become a label, class by class.

Symbols: n detections, C classes.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_d2.config.rules import ConfigError
from kd_d2.registry import unknown_name

THRESHOLD_MODES = ("global", "per_class_fbeta", "per_class_count", "file")
LIMITS = (0.3, 0.9)
"""What thresholds that were found by themselves may be."""
LEAST_LABELS = 10
"""With fewer labelled boxes, a class is not worth a threshold of its own."""
_HIGH = 0.8

logger = logging.getLogger(__name__)


def fbeta_threshold(
    scores: np.ndarray, hits: np.ndarray, num_labels: int, beta: float = 0.5
) -> tuple[float, float]:
    """The score at which F-beta is highest if all from there on are kept.

    Where several cuts are equally good, it is the highest score.

    Args:
        scores: (n,) of one class.
        hits: (n,) bool, which of them have found a labelled box.
        num_labels: number of labelled boxes, found or not.
        beta: precision counts 1 / beta times as much as recall.

    Returns:
        threshold and F-beta; 1 and 0 if nothing is found.

    >>> scores = [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    >>> t, f = fbeta_threshold(np.array(scores), np.array([1, 1, 0, 1, 1, 0, 0, 1]), 5)
    >>> t, round(f, 4)
    (0.6, 0.8)
    """
    scores, hits = np.asarray(scores), np.asarray(hits, bool)
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], hits[order].cumsum()
    # nothing can be cut between equal scores
    cuts = np.diff(scores, append=-1).nonzero()[0]
    if not len(cuts) or not found[-1]:
        return 1.0, 0.0
    # F = (1 + b^2) P R / (b^2 P + R) with P = found / kept and R = found / labels
    f = (1 + beta**2) * found[cuts] / (beta**2 * num_labels + cuts + 1)
    best = np.argmax(f)
    return float(scores[cuts[best]]), float(f[best])


def fbeta_thresholds(
    category: np.ndarray,
    scores: np.ndarray,
    hits: np.ndarray,
    num_labels: np.ndarray,
    default: float,
    beta: float = 0.5,
    limits: tuple[float, float] = LIMITS,
) -> np.ndarray:
    """Thresholds (C,) of all classes by F-beta, within the limits.

    Args:
        category, scores, hits: (n,) of detections in labelled images.
        num_labels: (C,) labelled boxes; classes with fewer than ``LEAST_LABELS`` get the default.
    """
    thresholds = np.full(len(num_labels), default)
    order = np.argsort(category, kind="stable")
    bounds = np.searchsorted(category[order], np.arange(len(num_labels) + 1))
    for c in (np.asarray(num_labels) >= LEAST_LABELS).nonzero()[0]:
        of_class = order[bounds[c] : bounds[c + 1]]
        t, _ = fbeta_threshold(scores[of_class], hits[of_class], num_labels[c], beta)
        thresholds[c] = np.clip(t, *limits)
    return thresholds


def count_ranks(num_images: int, mean_labels: np.ndarray) -> np.ndarray:
    """How many detections (C,) of each class to keep: as many in an image as there are labels.

    Args:
        num_images: images without labels.
        mean_labels: (C,) labelled boxes in an image.

    >>> count_ranks(2, np.array([3.0])).tolist()
    [6]
    """
    return np.floor(num_images * np.asarray(mean_labels) + 0.5).astype(np.int64)


def count_thresholds(
    scores_of_rank: np.ndarray,
    known: np.ndarray,
    default: float,
    limits: tuple[float, float] = LIMITS,
) -> np.ndarray:
    """Thresholds (C,) by :func:`count_ranks`, within the limits.

    Args:
        scores_of_rank: (C,) as :class:`ScoreRanks` gives them.
        known: (C,) bool, which classes the labels are about; the others get the default.
    """
    return np.where(known, np.clip(scores_of_rank.astype(np.float64), *limits), default)


def read_thresholds(
    path: str | Path, known: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Reads a JSON file of class -> threshold, or of teacher -> class -> threshold.

    Args:
        known: names of the unified classes that each teacher knows.

    Returns:
        teacher -> class -> threshold, complete.

    Raises:
        ConfigError: it cannot be read, names something unknown, lacks a class, or a threshold is
            not between 0 and 1.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The thresholds {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}.") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f'{path} must be a mapping such as {{"person": 0.5}}.')
    if not all(isinstance(x, dict) for x in content.values()):
        # a class that another teacher knows is no mistake here
        _check_names(path, "class", content, {c for names in known.values() for c in names})
        content = {t: {c: content[c] for c in known[t] if c in content} for t in known}
    _check_names(path, "teacher", content, known)
    for teacher, classes in known.items():
        given = content.get(teacher, {})
        _check_names(path, f"class of {teacher}", given, classes)
        missing = [c for c in classes if c not in given]
        if missing:
            raise ConfigError(f"{path} has no threshold for {missing[0]!r} of {teacher}: add one.")
        for name, t in given.items():
            if type(t) not in (int, float) or not 0 < t < 1:
                raise ConfigError(f"{path}: {name!r} has {t!r}; a threshold is between 0 and 1.")
    return {teacher: {c: float(content[teacher][c]) for c in known[teacher]} for teacher in known}


def _check_names(path: str | Path, kind: str, given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{path}: {unknown_name(kind, name, known)}")


def warn_of_high(thresholds: Mapping[str, Mapping[str, float]]) -> None:
    """Logs which thresholds (teacher -> class -> t) are so high that objects will be missing."""
    for teacher, classes in thresholds.items():
        high = [name for name, t in classes.items() if np.float32(t) > np.float32(_HIGH)]
        if high:
            logger.warning(
                f"{teacher}: the threshold is above {_HIGH} for {len(high)} of {len(classes)} "
                f"classes ({', '.join(high[:5])}{', ...' if len(high) > 5 else ''}); rare and small"
                " objects will be missing, and become background in the training."
            )
