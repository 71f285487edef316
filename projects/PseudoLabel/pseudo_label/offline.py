"""All stages after generate in a row; what is done already, and whole, stays.

``offline.json`` says of export, report and sheet what they were made of, and the hashes of their
files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd_d2.checkpoint import atomic_write

from .check_thresholds import check_thresholds
from .class_map import Unified
from .export import FOLDER, ExportSettings, check_image_names, export_run
from .filter import filter_run
from .filters import FilterSettings
from .label_quality import QualityMeter
from .label_set import LabelSet
from .labelled_run import STAGES, read_stage
from .merge import merge_run
from .merge_settings import MergeSettings
from .publish import NEW, tree_sha256
from .report import write_report
from .run_folder import ImageRecord, RunFolder, hash_of
from .sheet import SheetSettings, write_sheet
from .statistics import labelled_shares, statistics

RECORD = "offline.json"


def check_offline(
    teachers: Sequence[str],
    unified: Unified,
    images: Sequence[ImageRecord],
    merge: MergeSettings,
    filter: FilterSettings,
    export: ExportSettings,
    *,
    labels: LabelSet | None = None,
    truth: LabelSet | None = None,
) -> None:
    """Whether :func:`label_images` can end well, as far as that is known without detections.

    Args:
        teachers: their names.
        images: of the run.

    Raises:
        ConfigError, LabelFileError: settings that do not fit teachers, images or labels.
    """
    check_thresholds(merge, filter, unified, teachers, images)
    check_image_names(export, (x.name for x in images))
    if labels is not None:
        labelled_shares(labels, unified.names)
    if truth is not None:
        QualityMeter(truth, unified.names).check_images(images)


def label_images(
    run: RunFolder,
    merge: MergeSettings,
    filter: FilterSettings,
    export: ExportSettings,
    *,
    labels: LabelSet | None = None,
    truth: LabelSet | None = None,
    sheet: SheetSettings = SheetSettings(),  # noqa: B008, it is frozen
    category_ids: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Merges, filters and exports what the teachers of a run found, with report and sheet.

    A stage that was made of the same detections and settings, and whose files are as it wrote them,
    is not repeated.

    Args:
        labels: a data set whose mix of classes the report compares with that of the labels.
        truth: labels of images of the run, for the report.
        category_ids: as of :func:`export_run`.
        progress: as of :func:`merge_run`.

    Returns:
        the folder of the export.

    Raises:
        RunError: the stage generate is not done.
        ConfigError, ClassMapError, ExportError, LabelFileError: settings that do not fit the run.
        ShardError: shards are of another run, or were changed.
        ChangedFileError: a file of the export was changed; nothing is overwritten.
    """
    merge_run(run, merge, progress)
    filter_run(run, filter)
    boxes = [read_stage(run, stage) for stage in STAGES]
    of_labels = [None if x is None else x.digest() for x in (labels, truth)]
    record = _Record(run)
    record.ensure(
        "export",
        [boxes, asdict(export), category_ids],
        lambda: export_run(run, export, category_ids),
    )
    record.ensure(
        "report", [boxes, of_labels], lambda: write_report(run, statistics(run, labels, truth))
    )
    record.ensure("sheet", [boxes, asdict(sheet)], lambda: write_sheet(run, sheet))
    return run.folder / FOLDER


class _Record:
    """``offline.json``."""

    def __init__(self, run: RunFolder):
        self._run, self._path = run, run.folder / RECORD
        try:
            self._stages: dict[str, dict[str, Any]] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._stages = {}

    def ensure(self, stage: str, made_of: Any, write: Callable[[], list[Path]]) -> None:
        """Runs a stage, unless it was run with all of that and its files are as it wrote them.

        Args:
            stage: name of it and of its folder.
            write: returns the paths of its files and folders.
        """
        digest = hash_of(made_of)
        if self._is_whole(stage, digest):
            return
        files = {x.relative_to(self._run.folder).as_posix(): tree_sha256(x) for x in write()}
        self._stages[stage] = {"made_of": digest, "files": files}
        with atomic_write(str(self._path), "w") as f:
            json.dump(self._stages, f, indent=1)

    def _is_whole(self, stage: str, digest: str) -> bool:
        record, cut_off = self._stages.get(stage), (self._run.folder / stage / NEW).exists()
        if record is None or record["made_of"] != digest or cut_off:
            return False
        files = {self._run.folder / name: sha256 for name, sha256 in record["files"].items()}
        return all(path.exists() and tree_sha256(path) == x for path, x in files.items())
