"""A run on disk: which images, which teachers, and where the stages put what they make.

run.json                  teachers, settings, hash of the image list; written by generate
images.jsonl              a line for each image, in the order of the run
raw/<teacher>/            shards of all that a teacher found (generate)
speed/                    how long that took, a file for each process
merged/, merge.json       shards of unified classes, and how they came about (merge)
filtered/, ignored/       shards of pseudo boxes and of ignore boxes (filter), and
filter.json               by which thresholds, and how many fell to which filter
export/  report/  sheet/  what people and trainings read, and
offline.json              what all stages in a row made them of (offline)
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kd_d2.checkpoint import atomic_write, file_sha256

from .shards import SIZE, Shard, split

_SEAL = "sha256"  # of a record, in itself


class RunError(ValueError):
    """A folder that is no run, or another one; the message says what to do."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of a run.

    Attributes:
        file_name: where it is, absolute.
        name: relative to the run's root, with ``/``; what exported labels call it.
        id: unique in the run; its source's own where that has one.
        source: name of the data set, list or folder that it is from.
    """

    file_name: str
    name: str
    id: int
    source: str


@dataclass(frozen=True)
class TeacherRecord:
    """One teacher of a run.

    Attributes:
        name: of its folder below ``raw``.
        classes: names of its classes, by its own numbers.
        run: hash of all that its detections depend on: config, weights, settings, images.
        provenance: what that was, for people.
    """

    name: str
    classes: tuple[str, ...]
    run: str
    provenance: dict[str, Any]


def hash_of(value: Any) -> str:
    """Hash of anything that JSON can hold; equal for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its own hash in it."""
    return {**content, _SEAL: hash_of(content)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether a record is as it was sealed; those of versions that did not seal count as such.

    >>> content = sealed({"floor": 0.05})
    >>> is_sealed(content), is_sealed(content | {"floor": 0.1}), is_sealed({"floor": 0.1})
    (True, False, True)
    """
    bare = {key: value for key, value in content.items() if key != _SEAL}
    return content.get(_SEAL) in (None, hash_of(bare))


def image_list_hash(images: Iterable[ImageRecord]) -> str:
    """Hash of the names and ids, whatever folder the images lie in on this machine."""
    return hash_of([[x.name, x.id] for x in images])


class RunFolder:
    """Opens a run that :meth:`create` has made.

    Raises:
        RunError: there is none, or it cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self._content = json.loads((self.folder / "run.json").read_text())
            self.root: str = self._content["root"]
            self.shard_size: int = self._content["shard_size"]
            self.teachers = [
                TeacherRecord(**t | {"classes": tuple(t["classes"])})
                for t in self._content["teachers"]
            ]
        except FileNotFoundError:
            raise RunError(f"{folder} is no run: begin with the stage generate.") from None
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{self.folder / 'run.json'} cannot be read ({error}): delete the folder and begin "
                "anew."
            ) from None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        root: str,
        images: Sequence[ImageRecord],
        teachers: Sequence[TeacherRecord],
        shard_size: int = SIZE,
    ) -> "RunFolder":
        """Writes ``images.jsonl`` and ``run.json``, whose presence says that both are whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(str(folder / "images.jsonl"), "w") as f:
            for image in images:
                f.write(json.dumps(asdict(image)) + "\n")
        content = {
            "root": root,
            "shard_size": shard_size,
            "num_images": len(images),
            "image_list": image_list_hash(images),
            "images_jsonl": file_sha256(str(folder / "images.jsonl")),
            "teachers": [asdict(t) for t in teachers],
        }
        with atomic_write(str(folder / "run.json"), "w") as f:
            json.dump(sealed(content), f, indent=1, sort_keys=True)
        return cls(folder)

    @property
    def is_as_written(self) -> bool:
        """Whether ``run.json`` is."""
        return is_sealed(self._content)

    @property
    def has_images_as_written(self) -> bool:
        """Whether ``images.jsonl`` is; runs of versions that did not note its hash count as such.

        Raises:
            OSError: it is not there.
        """
        now = file_sha256(str(self.folder / "images.jsonl"))
        return self._content.get("images_jsonl") in (None, now)

    @property
    def image_list(self) -> str:
        """Hash of the image list."""
        return self._content["image_list"]

    @property
    def num_images(self) -> int:
        return self._content["num_images"]

    @property
    def shards(self) -> list[Shard]:
        return [shard for shard, _ in self._places]

    @cached_property
    def _places(self) -> list[tuple[Shard, int]]:
        """The shards, and where in ``images.jsonl`` each begins."""
        offsets: list[int] = []

        def names() -> Iterator[str]:
            place = 0
            with open(self.folder / "images.jsonl", "rb") as f:
                for number, line in enumerate(f):
                    if number % self.shard_size == 0:
                        offsets.append(place)
                    place += len(line)
                    yield json.loads(line)["name"]

        return list(zip(split(names(), self.shard_size), offsets, strict=True))

    def images(self, shard: Shard | None = None) -> Iterator[ImageRecord]:
        """In the order of the run; of a shard, or all."""
        place, count = (0, self.num_images) if shard is None else (self._place(shard), len(shard))
        with open(self.folder / "images.jsonl", "rb") as f:
            f.seek(place)
            for line in itertools.islice(f, count):
                yield ImageRecord(**json.loads(line))

    def _place(self, shard: Shard) -> int:
        return self._places[shard.index][1]

    def raw(self, teacher: TeacherRecord) -> Path:
        return self.folder / "raw" / teacher.name

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def filtered(self) -> Path:
        return self.folder / "filtered"

    @property
    def ignored(self) -> Path:
        return self.folder / "ignored"
