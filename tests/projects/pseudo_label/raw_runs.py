"""Small runs whose stage generate is done, made without any detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.run_folder import ImageRecord, RunFolder, TeacherRecord
from kd_d2.projects.pseudo_label.shards import ShardContents, write_shard

HEIGHT, WIDTH = 100, 200


def found(*rows) -> Detections:
    """Rows of image, x0, y0, x1, y1, score, category, and perhaps teacher and agreement."""
    full = np.array([(*r, *(0, np.nan)[len(r) - 7 :]) for r in rows], float).reshape(-1, 9)
    return Detections.make(
        full[:, 0], full[:, 1:5], full[:, 5], full[:, 6], full[:, 7], 1, full[:, 8]
    )


def random_detections(rng, n, images=4, classes=3, teachers=3, scores=None) -> Detections:
    """Clustered boxes; with ``scores`` levels, many ties."""
    center = rng.integers(1, 4, (n, 2)) * 25
    corner = center + rng.integers(-8, 9, (n, 2))
    size = rng.integers(18, 30, (n, 2))
    score = rng.integers(1, scores + 1, n) / scores if scores else rng.uniform(0.05, 1, n)
    return Detections.make(
        np.sort(rng.integers(0, images, n)),
        np.concatenate([corner, corner + size], 1),
        score,
        rng.integers(0, classes, n),
        rng.integers(0, teachers, n),
        1,
        rng.uniform(0, 1, n),
    )


def make_run(
    folder: Path,
    teachers: Mapping[str, tuple[Sequence[str], Detections]],
    num_images: int = 4,
    shard_size: int = 3,
    failed: Mapping[str, Sequence[int]] = {},
) -> RunFolder:
    """
    Args:
        teachers: name -> classes and detections, whose ``teacher`` does not matter.
        failed: teacher -> images that it could not read.
    """
    images = [
        ImageRecord(f"/data/image_{k}.jpg", f"image_{k}.jpg", 1000 + k, "made up")
        for k in range(num_images)
    ]
    records = [TeacherRecord(t, tuple(c), f"run of {t}", {}) for t, (c, _) in teachers.items()]
    run = RunFolder.create(folder, "/data", images, records, shard_size)
    for teacher, (_, d) in zip(run.teachers, teachers.values()):
        write_raw(run, teacher, d, failed.get(teacher.name, ()))
    return run


def write_raw(run: RunFolder, teacher: TeacherRecord, d: Detections, failed=()) -> None:
    for shard in run.shards:
        inside = (d.image >= shard.first) & (d.image < shard.last) & ~np.isin(d.image, failed)
        broken = {k: "broken" for k in failed if shard.first <= k < shard.last}
        sizes = np.tile([HEIGHT, WIDTH], (len(shard), 1))
        sizes[[k - shard.first for k in broken]] = 0
        contents = ShardContents(d[inside].by_image(), sizes, broken)
        write_shard(run.raw(teacher), shard, contents, teacher.run)


def rows_of(d: Detections) -> list[tuple]:
    """All that is known of each, in an order of its own."""
    table = zip(
        d.image.tolist(),
        d.category.tolist(),
        d.score.round(5).tolist(),
        d.box.round(3).tolist(),
        d.teacher.tolist(),
        d.votes.tolist(),
    )
    return sorted((*x[:3], tuple(x[3]), *x[4:]) for x in table)
