"""What users call the settings of the stages: the key of a config, and the option of
``tools/pseudo_label.py``."""

_MERGE, _FILTER = "PSEUDO_LABEL.MERGE", "PSEUDO_LABEL.FILTER"
NAMES = {
    "mode": (f"{_MERGE}.MODE", "--merge"),
    "iou": (f"{_MERGE}.IOU", "--merge-iou"),
    "score_type": (f"{_MERGE}.SCORE_TYPE", "--score-type"),
    "min_votes": (f"{_MERGE}.MIN_VOTES", "--min-votes"),
    "threshold_mode": (f"{_MERGE}.THRESHOLDS", "--thresholds"),
    "threshold": (f"{_MERGE}.THRESHOLD", "--threshold"),
    "threshold_file": (f"{_MERGE}.THRESHOLD_FILE", "--threshold-file"),
    "labels": (f"{_MERGE}.THRESHOLD_LABELS", "--labels"),
    "beta": (f"{_MERGE}.BETA", "--beta"),
    "limits": (f"{_MERGE}.LIMITS", "--limits"),
    "classes": ("PSEUDO_LABEL.CLASSES", "--classes"),
    "t_ignore": (f"{_FILTER}.T_IGNORE", "--ignore-from"),
    "min_side": (f"{_FILTER}.MIN_SIDE", "--min-side"),
    "min_area": (f"{_FILTER}.MIN_AREA", "--min-area"),
    "max_aspect": (f"{_FILTER}.MAX_ASPECT", "--max-aspect"),
    "duplicate_iou": (f"{_FILTER}.DUPLICATE_IOU", "--duplicate-iou"),
    "max_boxes": (f"{_FILTER}.MAX_BOXES", "--max-boxes"),
    "min_agreement": (f"{_FILTER}.MIN_AGREEMENT", "--min-agreement"),
    "empty_images": (f"{_FILTER}.EMPTY_IMAGES", "--empty-images"),
    "max_ambiguous_ratio": (f"{_FILTER}.MAX_AMBIGUOUS_RATIO", "--max-ambiguous-ratio"),
}
"""Attribute of ``MergeSettings`` or ``FilterSettings`` -> key and option."""

ELSEWHERE = (
    "Choose another folder (PSEUDO_LABEL.LABELS_DIR, --output), or delete this one to begin anew "
    "(tools/pseudo_label.py does so with --new-run)."
)
"""What to do about a run of other labels."""


def called(setting: str) -> str:
    """
    >>> called("t_ignore"), called("parent_iou")
    ('PSEUDO_LABEL.FILTER.T_IGNORE (--ignore-from)', 'parent_iou')
    """
    return "{} ({})".format(*NAMES[setting]) if setting in NAMES else setting
