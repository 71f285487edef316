"""How fast teachers label: what each process has done, beside the run and no part of it.

speed/<number>.json   from when to when a process has worked; images and seconds of each teacher
"""

import json
import time
import uuid
from collections import Counter
from datetime import datetime, timezone
from typing import Any

from kd_d2.checkpoint import atomic_write

from .run_folder import RunFolder

FOLDER = "speed"


class Stopwatch:
    """Images and seconds of each teacher in this process, from the moment it is made on."""

    def __init__(self):
        self._images: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._started, self._last = _now(), time.monotonic()

    def go_on(self) -> None:
        """The time since the last images was spent waiting for others, and is no teacher's."""
        self._last = time.monotonic()

    def add(self, teacher: str, images: int) -> None:
        """The time since the last images was spent on these."""
        now = time.monotonic()
        self._images[teacher] += images
        self._seconds[teacher] += now - self._last
        self._last = now

    def write(self, run: RunFolder) -> None:
        """Writes them beside those of all other processes, if there are any."""
        if not self._images:
            return
        teachers = {
            name: {"images": number, "seconds": self._seconds[name]}
            for name, number in self._images.items()
        }
        content = {"started": self._started, "ended": _now(), "teachers": teachers}
        folder = run.folder / FOLDER
        folder.mkdir(exist_ok=True)
        with atomic_write(str(folder / f"{uuid.uuid4().hex}.json"), "w") as f:
            json.dump(content, f, indent=1)


def speeds(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Each teacher's name -> what all processes together have done, where that is known.

    ``images_done`` and ``seconds`` are sums; ``images_per_second`` is their ratio, so that of one
    process; ``workers`` is the number of processes, at once or one after the other; ``ended`` is
    when the last one did. A process that was killed has noted neither its images nor its seconds.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((run.folder / FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_text())
            rows = [
                (name, int(x["images"]), float(x["seconds"]), str(content["ended"]))
                for name, x in content["teachers"].items()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # labels do not depend on it
        for name, images, seconds, ended in rows:
            of_teacher = found.setdefault(
                name, {"images_done": 0, "seconds": 0.0, "workers": 0, "ended": ended}
            )
            of_teacher["images_done"] += images
            of_teacher["seconds"] += seconds
            of_teacher["workers"] += 1
            of_teacher["ended"] = max(of_teacher["ended"], ended)
    for x in found.values():
        x["images_per_second"] = x["images_done"] / max(x["seconds"], 1e-9)
    return {t.name: found[t.name] for t in run.teachers if t.name in found}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
