"""Begins a run, or finds that one goes on; nothing is mixed that does not belong together."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .claims import Claims
from .run_folder import ImageRecord, RunError, RunFolder, TeacherRecord, image_list_hash
from .setting_names import ELSEWHERE
from .settings import GenerateSettings
from .shards import forget_failed
from .speed import FOLDER as SPEED
from .teachers import (
    IDENTITY,
    TeacherSource,
    load_teacher,
    surroundings,
    teacher_config,
    teacher_record,
)

_MOST_TOLD = 6  # differences


@dataclass(frozen=True)
class PlannedRun:
    """Who is to label what, checked; nothing is written before :meth:`begin`.

    Attributes:
        sources, teachers: where the teachers are, and their records.
        new_run: delete what other settings have left in the folder: all but exports and reports.
        retry_failed: do the shards again that have images which could not be read.
    """

    folder: Path
    images: Sequence[ImageRecord]
    root: str
    sources: Sequence[TeacherSource]
    teachers: list[TeacherRecord]
    settings: GenerateSettings
    new_run: bool = False
    retry_failed: bool = False

    def begin(self) -> RunFolder:
        """Writes it, or finds that it is what the folder has already. Many workers may do so at
        once.

        A run of other images, teachers or settings gives way if it has no shard yet, or to a new
        run, whose teachers are loaded before anything is deleted.

        Raises:
            RunError: the folder has another run; says which. Or workers are at what would be
                deleted.
            CheckpointError: weights that do not fit their teacher.
        """
        with Claims(self.folder, self.settings.heartbeat, self.settings.stale) as claims:
            while not claims.claim("run"):
                time.sleep(0.2)
            if (self.folder / "run.json").exists():
                run = RunFolder(self.folder)
                different = list(_differences(run, self.images, self.root, self.teachers))
                if not different:
                    return self._continued(run)
                self._make_way(run, different)
            size = self.settings.shard_size
            return RunFolder.create(self.folder, self.root, self.images, self.teachers, size)

    def _continued(self, run: RunFolder) -> RunFolder:
        """The run with the teachers where they lie on this machine."""
        if self.retry_failed:
            self._check_idle(run, "--retry-failed")
            for teacher in run.teachers:
                forget_failed(run.raw(teacher), run.shards)
        run.teachers = self.teachers
        return run

    def _make_way(self, run: RunFolder, different: list[str]) -> None:
        shards = any(True for x in _shard_folders(run) for _ in x.glob("*.done"))
        if self.new_run:
            self._check_idle(run, "--new-run")
        elif shards or self._at_work(run):
            more = f"; and {len(different) - _MOST_TOLD} more" * (len(different) > _MOST_TOLD)
            raise RunError(
                f"{run.folder} has another run: {'; '.join(different[:_MOST_TOLD])}{more}. "
                f"{ELSEWHERE}"
            )
        for source in self.sources if shards else ():
            load_teacher(source.name, teacher_config(source, self.settings))
        _delete(run)

    def _check_idle(self, run: RunFolder, argument: str) -> None:
        """
        Raises:
            RunError: workers are at it.
        """
        at_work = self._at_work(run)
        if at_work:
            raise RunError(
                f"{', '.join(at_work)} still works in {run.folder}: stop it first, or leave out "
                f"{argument} to join it."
            )

    def _at_work(self, run: RunFolder) -> list[str]:
        times = self.settings.heartbeat, self.settings.stale
        folders = [run.raw(teacher) for teacher in run.teachers]
        return list(dict.fromkeys(x for f in folders for x in Claims(f, *times).living()))


def plan_run(
    folder: str | Path,
    images: Sequence[ImageRecord],
    root: str,
    teachers: Sequence[TeacherSource],
    settings: GenerateSettings,
    new_run: bool = False,
    retry_failed: bool = False,
    **about: Any,
) -> PlannedRun:
    """Checks who is to label what.

    Args:
        images: as of ``sources``.
        root: folder that the names of the images are relative to.
        teachers: :class:`TeacherSource` or (name, config_file, weights, opts).
        new_run, retry_failed: see :class:`PlannedRun`.
        about: what else is to be known of the labels, such as ``licence`` and ``origin``.

    Raises:
        RunError: names or ids that are there twice.
        ValueError, OSError: a teacher cannot be used.
    """
    _check_unique("image", [x.name for x in images])
    _check_unique("id", [x.id for x in images])
    sources = [TeacherSource(*x) for x in teachers]
    _check_unique("teacher", [x.name for x in sources])
    about = surroundings(str(settings.torch_device())) | about
    image_list = image_list_hash(images)
    records = [teacher_record(x, settings, image_list, about) for x in sources]
    planned = (Path(folder), images, root, sources, records, settings)
    return PlannedRun(*planned, new_run, retry_failed)


def prepare_run(*args: Any, **kwargs: Any) -> RunFolder:
    """Plans a run, see :func:`plan_run`, and begins it, see :meth:`PlannedRun.begin`."""
    return plan_run(*args, **kwargs).begin()


def _check_unique(what: str, values: list) -> None:
    if not values:
        raise RunError(f"There is no {what}: name one at least.")
    twice = [x for x, count in Counter(values).items() if count > 1]
    if twice:
        raise RunError(f"There is more than one {what} {twice[0]}: each must have its own.")


def _differences(
    run: RunFolder, images: Sequence[ImageRecord], root: str, records: list[TeacherRecord]
) -> Iterator[str]:
    if run.image_list != image_list_hash(images):
        yield _first_other_image(run, images)
    elif run.root != root:
        yield f"its images lay in {run.root}, and now in {root} (a link there helps)"
    before, now = ([t.name for t in x] for x in (run.teachers, records))
    if before != now:
        yield f"its teachers were {', '.join(before)}, and now are {', '.join(now)}"
        return
    for old, new in zip(run.teachers, records, strict=True):
        # as they are after reading: tuples are lists
        new_values = json.loads(json.dumps(new.provenance, default=str))
        for key in IDENTITY:
            if key != "image_list":
                yield from _changes(
                    f"{new.name}'s {key}", old.provenance.get(key), new_values.get(key)
                )
        yield from _changes(f"{new.name}'s classes", list(old.classes), list(new.classes))


def _changes(what: str, old: Any, new: Any) -> Iterator[str]:
    """What is different, key by key.

    >>> list(_changes("a's config", {"X": 1, "Y": [2]}, {"X": 1, "Y": [3], "Z": 4}))
    ["a's config Y was [2], and now is [3]", "a's config Z was as by default, and now is 4"]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changes(f"{what} {key}", old.get(key), new.get(key))
    elif old != new:
        old, new = ("as by default" if x is None else x for x in (old, new))
        yield f"{what} was {old}, and now is {new}"


def _first_other_image(run: RunFolder, images: Sequence[ImageRecord]) -> str:
    if run.num_images != len(images):
        return f"it has {run.num_images} images, and now there are {len(images)}"
    pairs = zip(run.images(), images, strict=True)
    old, new = next((a, b) for a, b in pairs if (a.name, a.id) != (b.name, b.id))
    return f"its list had {old.name} (id {old.id}) where now is {new.name} (id {new.id})"


def _shard_folders(run: RunFolder) -> list[Path]:
    return [*map(run.raw, run.teachers), run.merged, run.filtered, run.ignored]


def _delete(run: RunFolder) -> None:
    """What the stages have made, and last what says that there is a run."""
    for folder in (run.folder / "raw", *_shard_folders(run), run.folder / SPEED):
        if folder.exists():
            shutil.rmtree(folder)
    for name in ("merge.json", "filter.json", "errors.jsonl", "images.jsonl", "run.json"):
        (run.folder / name).unlink(missing_ok=True)
