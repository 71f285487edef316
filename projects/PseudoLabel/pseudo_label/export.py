"""Pseudo labels as files that trainings and other tools read.

export/pseudo.json        pseudo boxes in COCO's format
export/ignore.json        ignore boxes in the same format
export/dropped.json       images that the filter has dropped, with all their boxes as ignore boxes;
                          only for those who have other labels of these images
export/results.json       all detections that were merged, as a list of COCO results
export/yolo/  voc/        a label file for each image
export/cvat.zip           to be uploaded to CVAT
export/provenance.json    how they were made, and their hashes

Symbols: C unified categories.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from .coco_files import JsonList, result_lines
from .coco_volumes import DroppedImages, UsedImages, volume_names
from .label_files import CvatZip, VocFolder, YoloFolder, check_label_files
from .labelled_run import LabelledRun, LabelledShard
from .provenance import lasting, provenance
from .publish import SIDE_CAR, published
from .run_folder import RunError, RunFolder
from .weights import WEIGHT_MODES

FOLDER, RESULTS = "export", "results.json"
_PER_IMAGE = {
    "yolo": ("yolo", YoloFolder),
    "voc": ("voc", VocFolder),
    "cvat": ("cvat.zip", CvatZip),
}
FORMATS = ("coco", "results", *_PER_IMAGE)
_FILE_EACH = ("yolo", "voc")  # formats with a file for each image
IGNORE_MODES = ("separate", "inline", "none")


class ExportError(ValueError):
    """Settings or ids of categories that cannot be."""


@dataclass(frozen=True)
class ExportSettings:
    """
    Attributes:
        weight_mode: what the weights of pseudo boxes are, one of ``WEIGHT_MODES``.
        w_min: weight of a box at its threshold, in the mode "linear".
        max_images_per_file: more images make ``pseudo_000.json``, ``pseudo_001.json``, ..., as
            pycocotools keeps a whole file in memory.
        ignore: where ignore boxes go: to ``ignore.json`` ("separate"), among the pseudo boxes with
            ``"ignore": 1`` ("inline"; Detectron2's own reader refuses them), or nowhere ("none").
            But for "none", images that the filter has dropped go to ``dropped.json``.
        formats: one or more of ``FORMATS``.

    Raises:
        ExportError: a value that cannot be.
    """

    weight_mode: str = "none"
    w_min: float = 0.25
    max_images_per_file: int = 200_000
    ignore: str = "separate"
    formats: tuple[str, ...] = ("coco", "results")

    def __post_init__(self):
        object.__setattr__(self, "formats", tuple(self.formats))
        for name, known in (("weight_mode", WEIGHT_MODES), ("ignore", IGNORE_MODES)):
            if getattr(self, name) not in known:
                raise ExportError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}."
                )
        if not 0 <= self.w_min <= 1:
            raise ExportError(f"w_min is {self.w_min}; it must be from 0 to 1.")
        if self.max_images_per_file < 1:
            raise ExportError(
                f"max_images_per_file is {self.max_images_per_file}; it must be at least 1."
            )
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ExportError(
                f"formats is {list(self.formats)}; it must be some of {', '.join(FORMATS)}."
            )


def export_run(
    run: RunFolder,
    settings: ExportSettings | None = None,
    category_ids: Mapping[str, int] | None = None,
) -> list[Path]:
    """Writes a run's labels in the formats asked for, and how they came about.

    Args:
        category_ids: id of each unified category, e.g. of the data set that the labels complete;
            None: 1 to C in the order of the run. More names than the run has do no harm.

    Returns:
        what was written; the side-car stands last.

    Raises:
        ExportError: a category has no id, or shares it.
        RunError, ShardError: the run is not complete.
        ChangedFileError: a former export was changed.
        LabelFileError: images whose names label files cannot have.
    """
    settings = settings or ExportSettings()
    labels = LabelledRun(run)
    ids = checked_ids(labels.categories, category_ids)
    made_of = provenance(run) | {"export": asdict(settings)}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    folder, names = run.folder / FOLDER, _file_names(labels, settings)
    with published(folder, names, made_of | {"written": now}) as new:
        writers = _writers(new, labels, settings, ids, lasting(made_of))
        left = np.array([labels.num_used, labels.num_dropped])
        for part in labels.shards("export"):
            left -= len(part.used_images), len(part.dropped_images)
            if (left < 0).any():
                break
            for writer in writers:
                writer.add(part)
        if left.any():
            raise RunError(
                f"filter.json speaks of {labels.num_used} images that are used and of "
                f"{labels.num_dropped} that are dropped, its shards of other numbers: run the "
                "stage filter again."
            )
        for writer in writers:
            writer.close()
    return [folder / name for name in (*names, SIDE_CAR)]


def checked_ids(categories: list[str], category_ids: Mapping[str, int] | None) -> np.ndarray:
    """(C,) the id of each unified category.

    Raises:
        ExportError: one has none, or one that another has, too.
    """
    if category_ids is None:
        return np.arange(1, len(categories) + 1)
    missing = [name for name in categories if name not in category_ids]
    if missing:
        raise ExportError(f"No category id is given for {', '.join(missing)}: add it.")
    ids = [category_ids[name] for name in categories]
    if any(not isinstance(i, int) or i < 0 for i in ids) or len(set(ids)) < len(ids):
        raise ExportError(
            f"The category ids {ids} must be whole numbers, none of them below 0 or there twice."
        )
    return np.array(ids)


def check_image_names(settings: ExportSettings, names: Iterable[str]) -> None:
    """
    Raises:
        LabelFileError: images whose names label files cannot have, if there are to be any.
    """
    if set(_FILE_EACH) & set(settings.formats):
        check_label_files(names)


class _Results:
    """``results.json``."""

    def __init__(self, path: Path, ids: np.ndarray):
        self._list, self._ids = JsonList(path), ids

    def add(self, part: LabelledShard) -> None:
        self._list.extend(result_lines(part.merged, part.ids_of(part.merged), self._ids))

    def close(self) -> None:
        self._list.close()


class _EachImage:
    """Hands one used image after the other to a writer of label files."""

    def __init__(self, writer: YoloFolder | VocFolder | CvatZip):
        self._writer = writer

    def add(self, part: LabelledShard) -> None:
        for image, size, found in part.used():
            self._writer.add(image, size, found)

    def close(self) -> None:
        self._writer.close()


def _file_names(labels: LabelledRun, settings: ExportSettings) -> list[str]:
    names = []
    if "coco" in settings.formats:
        for stem in ("pseudo", "ignore")[: 1 + (settings.ignore == "separate")]:
            names += volume_names(stem, labels.num_used, settings.max_images_per_file)
        if _has_dropped(labels, settings):
            names += volume_names("dropped", labels.num_dropped, settings.max_images_per_file)
    names += [RESULTS] * ("results" in settings.formats)
    return names + [name for key, (name, _) in _PER_IMAGE.items() if key in settings.formats]


def _has_dropped(labels: LabelledRun, settings: ExportSettings) -> bool:
    return settings.ignore != "none" and labels.num_dropped > 0


def _writers(
    folder: Path, labels: LabelledRun, settings: ExportSettings, ids: np.ndarray, made_of: dict
) -> list[UsedImages | DroppedImages | _Results | _EachImage]:
    writers: list[UsedImages | DroppedImages | _Results | _EachImage] = []
    if "coco" in settings.formats:
        common, limit = (folder, labels, ids, made_of), settings.max_images_per_file
        writers.append(
            UsedImages(
                *common,
                limit=limit,
                weight_mode=settings.weight_mode,
                w_min=settings.w_min,
                ignore=settings.ignore,
            )
        )
        if _has_dropped(labels, settings):
            writers.append(DroppedImages(*common, limit=limit))
    if "results" in settings.formats:
        writers.append(_Results(folder / RESULTS, ids))
    for key, (name, writer) in _PER_IMAGE.items():
        if key in settings.formats:
            writers.append(_EachImage(writer(folder / name, labels.categories)))
    return writers
