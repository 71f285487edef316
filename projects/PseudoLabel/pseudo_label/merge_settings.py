"""What a user can say about the stage merge."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_d2.config.rules import ConfigError

from .label_set import LabelSet
from .merging import SCORE_TYPES
from .setting_names import called
from .thresholds import LIMITS, THRESHOLD_MODES

MODES = {"nms": 0.6, "wbf": 0.55, "vote": 0.5}
"""Ways of merging, and the IoU of each that makes two boxes one."""
NEEDS_LABELS = ("per_class_fbeta", "per_class_count")


@dataclass(frozen=True)
class MergeSettings:
    """
    Attributes:
        class_maps: teacher -> file of its class map; None, or left out: its classes keep their
            names.
        classes: names of all unified classes in the order that their numbers shall have, such as
            that of a student's test set; none: the order in which the teachers first name them.
        mode: one of ``MODES``.
        iou: None for the mode's own.
        score_type: of wbf, one of ``merging.SCORE_TYPES``.
        weights: of wbf, teacher -> how much it counts; those left out count 1.
        min_votes: of vote, how many teachers must agree.
        threshold_mode: one of ``thresholds.THRESHOLD_MODES``.
        threshold: "global", and for classes without a threshold of their own.
        beta: of "per_class_fbeta".
        limits: between which thresholds that are found by themselves must be.
        threshold_file: of "file".
        labels: of "per_class_fbeta" (labelled images of the run) and "per_class_count" (of any).
        parent_iou: a box of a child class that overlaps its parent's by more replaces it.

    Raises:
        ConfigError: with one sentence on the first value that cannot be.
    """

    class_maps: Mapping[str, str | Path | None] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    mode: str = "nms"
    iou: float | None = None
    score_type: str = "avg"
    weights: Mapping[str, float] = field(default_factory=dict)
    min_votes: int = 2
    threshold_mode: str = "global"
    threshold: float = 0.5
    beta: float = 0.5
    limits: tuple[float, float] = LIMITS
    threshold_file: str | Path | None = None
    labels: LabelSet | None = None
    parent_iou: float = 0.7

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        if twice:
            raise ConfigError(
                f"{called('classes')} has {twice[0]!r} more than once: name each class once."
            )
        for key, known in (
            ("mode", MODES),
            ("score_type", SCORE_TYPES),
            ("threshold_mode", THRESHOLD_MODES),
        ):
            value = getattr(self, key)
            if value not in known:
                raise ConfigError(
                    f"{called(key)} is {value!r}; it must be one of {', '.join(known)}."
                )
        low, high = self.limits
        rules = [
            ("iou", 0 < self.least_iou < 1, "between 0 and 1"),
            ("parent_iou", 0 < self.parent_iou < 1, "between 0 and 1"),
            ("threshold", 0 < self.threshold < 1, "between 0 and 1"),
            ("limits", 0 < low <= high < 1, "two numbers between 0 and 1, the lower one first"),
            ("beta", 0 < self.beta < float("inf"), "above 0"),
            ("min_votes", self.min_votes >= 1, "1 or more"),
            ("weights", all(0 < w < float("inf") for w in self.weights.values()), "above 0"),
        ]
        for key, fits, words in rules:
            if not fits:
                raise ConfigError(f"{called(key)} is {getattr(self, key)!r}; it must be {words}.")
        if self.weights and self.mode != "wbf":
            raise ConfigError("weights of teachers count with the mode wbf only: leave them out.")
        if (self.threshold_mode == "file") != (self.threshold_file is not None):
            raise ConfigError(
                f"{called('threshold_mode')} 'file' and a {called('threshold_file')} go together: "
                "give both."
            )
        if self.threshold_mode in NEEDS_LABELS and self.labels is None:
            raise ConfigError(
                f"{called('threshold_mode')} {self.threshold_mode} needs a labelled data set: name "
                f"one ({called('labels')})."
            )

    @property
    def least_iou(self) -> float:
        return MODES[self.mode] if self.iou is None else self.iou

    def record(self) -> dict[str, Any]:
        """For ``merge.json``."""
        # left out where it is not used, so that the bytes of such exports stay
        order = {"classes": list(self.classes)} if self.classes else {}
        return order | {
            "mode": self.mode,
            "iou": self.least_iou,
            "score_type": self.score_type,
            "weights": dict(self.weights),
            "min_votes": self.min_votes,
            "threshold_mode": self.threshold_mode,
            "threshold": self.threshold,
            "beta": self.beta,
            "limits": list(self.limits),
            "threshold_file": None if self.threshold_file is None else str(self.threshold_file),
            "labels": None if self.labels is None else self.labels.name,
            "parent_iou": self.parent_iou,
        }
