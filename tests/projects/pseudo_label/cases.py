"""Small runs whose stages merge and filter are done, made without any detector."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.filter import filter_hash
from kd_d2.projects.pseudo_label.label_set import LabelSet
from kd_d2.projects.pseudo_label.merge import merge_hash
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.raw_detections import raw_hashes
from kd_d2.projects.pseudo_label.run_folder import (
    ImageRecord,
    RunFolder,
    TeacherRecord,
    hash_of,
    sealed,
)
from kd_d2.projects.pseudo_label.shards import FAILED, UNCERTAIN, USED, ShardContents, write_shard
from kd_d2.projects.pseudo_label.teachers import teacher_hash

# image, x0, y0, x1, y1, score, category, and perhaps teacher, votes, agreement
Row = tuple


@dataclass
class Case:
    """A run to be made.

    Attributes:
        status: of each image.
        kept, ignored, merged: rows; what is kept or ignored is merged without being named again.
        known_by: names of the teachers that know each category.
    """

    status: Sequence[int]
    kept: list[Row] = field(default_factory=list)
    ignored: list[Row] = field(default_factory=list)
    merged: list[Row] = field(default_factory=list)
    categories: tuple[str, ...] = ("cat", "dog", "bird")
    teachers: tuple[str, ...] = ("big", "other")
    known_by: dict[str, list[str]] | None = None
    t_keep: tuple[float, ...] = (0.5, 0.6, 0.5)
    t_ignore: tuple[float, ...] = (0.3, 0.4, 0.3)
    size: tuple[int, int] = (60, 80)
    names: list[str] | None = None
    shard_size: int = 2


def detections(rows: list[Row]) -> Detections:
    full = [(*r, *(0, 1, np.nan)[len(r) - 7 :]) for r in rows]
    t = np.array(full, dtype=float).reshape(-1, 10)
    return Detections(t[:, 0], t[:, 1:5], t[:, 5], t[:, 6], t[:, 7], t[:, 8], t[:, 9]).by_image()


def make_run(folder: Path, case: Case) -> RunFolder:
    """Writes image files, the run, its raw shards and those of merge and filter."""
    n = len(case.status)
    names = case.names or [f"part{i % 2}/image_{i}.png" for i in range(n)]
    root = folder / "images"
    records = [ImageRecord(str(root / x), x, 100 + i, "made up") for i, x in enumerate(names)]
    write_images(records, case)
    made_by = {"floor": 0.05, "started": "10:31"}
    teachers = [
        TeacherRecord(x, case.categories, teacher_hash(made_by), made_by) for x in case.teachers
    ]
    run = RunFolder.create(folder / "run", str(root), records, teachers, case.shard_size)
    for i, teacher in enumerate(run.teachers):
        rows = [r for r in case.kept + case.ignored + case.merged if (*r, 0)[7] == i]
        write_shards(run, run.raw(teacher), rows, teacher.run, case, None)
    write_stages(run, case)
    return run


def write_images(records: list[ImageRecord], case: Case) -> None:
    """Grey gradients; those that failed are no images."""
    height, width = case.size
    for i, (record, status) in enumerate(zip(records, case.status, strict=True)):
        path = Path(record.file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if status == FAILED:
            path.write_text("no image")
            continue
        ramp = np.linspace(40, 120 + 20 * (i % 6), height * width).reshape(height, width, 1)
        Image.fromarray(np.repeat(ramp, 3, 2).astype(np.uint8)).save(path)


def write_stages(run: RunFolder, case: Case) -> None:
    """``merged``, ``filtered``, ``ignored`` and what the stages say of themselves."""
    known_by = case.known_by or {c: list(case.teachers) for c in case.categories}
    counts = np.bincount(np.array(case.status, int), minlength=5).tolist()
    names = ("used", "failed", "uncertain", "ambiguous", "empty")
    merge = {
        "categories": list(case.categories),
        "known_by": known_by,
        "thresholds": {t: dict.fromkeys(case.categories, 0.5) for t in case.teachers},
        "class_maps": {t: {c: c for c in case.categories} for t in case.teachers},
        "parents": {},
        "calibrated": len(case.teachers) > 1,
        "highest": False,
        "agreement": {a: {b: 0.75 for b in case.teachers if b != a} for a in case.teachers},
        "settings": MergeSettings().record(),
        "made_of": hash_of(raw_hashes(run)),
    }
    merge["hash"] = merge_hash(run, merge)
    filtering = {
        "categories": list(case.categories),
        "merge": merge["hash"],
        "made_of": merge["made_of"],
        "t_keep": dict(zip(case.categories, case.t_keep, strict=True)),
        "t_ignore": dict(zip(case.categories, case.t_ignore, strict=True)),
        "counters": {"invalid": 0, "small": 3, "elongated": 1, "low_score": 1},
        "images": dict(zip(names, counts, strict=True)),
        "kept": dict.fromkeys(case.categories, 1),
        "settings": {"min_side": 4},
    }
    filtering["hash"] = filter_hash(filtering)
    for name, content in (("merge", merge), ("filter", filtering)):
        (run.folder / f"{name}.json").write_text(json.dumps(sealed(content)))
    status = np.array(case.status, np.int8)
    write_shards(run, run.filtered, case.kept, filtering["hash"], case, status)
    write_shards(run, run.ignored, case.ignored, filtering["hash"], case, status)
    everything = case.kept + case.ignored + case.merged
    write_shards(run, run.merged, everything, merge["hash"], case, None)


def write_shards(
    run: RunFolder,
    folder: Path,
    rows: list[Row],
    made_by: str,
    case: Case,
    status: np.ndarray | None,
) -> None:
    found = detections(rows)
    for shard in run.shards:
        numbers = range(shard.first, shard.last)
        failed = {i: "cannot be read" for i in numbers if case.status[i] == FAILED}
        sizes = np.array([(0, 0) if i in failed else case.size for i in numbers])
        mine = found[(found.image >= shard.first) & (found.image < shard.last)]
        part = None if status is None else status[shard.first : shard.last]
        write_shard(folder, shard, ShardContents(mine, sizes, failed, part), made_by)


def usual_case() -> Case:
    """Five images in three shards: two with boxes, an empty, a broken and an uncertain one."""
    return Case(
        status=(USED, USED, USED, FAILED, 2),
        kept=[
            (0, 10, 10, 40.004, 50, 0.9, 0, 0, 2, 0.8125),
            (0, 5.25, 6.5, 20.125, 30.75, 0.6, 1, 1, 1),
            (1, 0, 0, 80, 60, 0.75, 0, 0, 1),
        ],
        ignored=[(0, 50, 20, 70, 40, 0.4, 2), (1, 1, 1, 9, 9, 0.45, 1, 1)],
        merged=[(0, 30, 30, 60, 55, 0.2, 0), (4, 5, 5, 30, 30, 0.48, 2, 1)],
    )


def label_set(run, boxes, classes=("cat", "dog", "bird"), name="people", empty=()):
    """Labels of images by their numbers: image, x0, y0, x1, y1, category, and perhaps iscrowd."""
    records = {}
    images = list(run.images())
    for i in sorted({b[0] for b in boxes} | set(empty)):
        records[i] = {
            "file_name": images[i].file_name, "image_id": images[i].id, "height": 60, "width": 80,
            "annotations": [],
        }  # fmt: skip
    for i, *box, category, crowd in [(*b, 0)[:7] for b in boxes]:
        records[i]["annotations"].append(
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "iscrowd": crowd}
        )
    return LabelSet(list(records.values()), classes, name)


def random_case(n: int, shard_size: int = 4) -> Case:
    """Kept boxes with one vote or two, and some below all thresholds, of n images of any fate."""
    generator = np.random.default_rng(0)
    status = generator.choice([USED, USED, USED, FAILED, UNCERTAIN], n).tolist()
    kept, merged = [], []
    for i in range(n):
        for _ in range(generator.integers(7)):
            x, y = generator.uniform(0, 40, 2).round()
            score, c = round(generator.uniform(0.61, 1), 3), int(generator.integers(3))
            row = (i, x, y, x + 20, y + 15, score, c, 0, int(generator.integers(1, 3)))
            if status[i] == USED:
                kept.append(row)
            if status[i] != FAILED:
                low = round(generator.uniform(0.05, 0.49), 3)
                merged.append((i, x, y, x + 12, y + 12, low, c))
    return Case(status=status, kept=kept, merged=merged, shard_size=shard_size)
