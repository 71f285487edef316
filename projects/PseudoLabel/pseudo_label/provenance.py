"""Where pseudo labels come from: teachers, thresholds, filters, images."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import kd_d2

from .labelled_run import STAGES, read_stage
from .run_folder import RunFolder
from .speed import speeds

VOLATILE = (
    *("command", "started", "ended", "date"),
    *("images_done", "seconds", "images_per_second", "workers"),
    *("host", "hardware", "pid", "root", "config_file", "weights"),
)
"""Keys of a teacher's or the images' record that may differ between equal runs; what is exported
has them only in its side-car."""


def provenance(run: RunFolder) -> dict[str, Any]:
    """All that is known of how a run's labels were made; stages that were not run are left out.

    Raises:
        RunError: a stage's record cannot be read.
    """
    speed = speeds(run)
    content: dict[str, Any] = {
        "contains_human_labels": False,
        "tool": f"kd_d2 {kd_d2.__version__}",
        "images": {
            "count": run.num_images,
            "list": run.image_list,
            "sources": dict(sorted(Counter(x.source for x in run.images()).items())),
            "root": run.root,
        },
        "teachers": [
            {"name": t.name, "classes": list(t.classes), "run": t.run}
            | t.provenance
            | speed.get(t.name, {})
            for t in run.teachers
        ],
    }
    for stage in STAGES:
        if (run.folder / f"{stage}.json").exists():
            content[stage] = read_stage(run, stage)
    return content


def lasting(content: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without what differs between equal runs: times, machines, folders.

    >>> teacher = {"name": "a", "started": "10:31", "floor": 0.05}
    >>> lasting({"tool": "kd_d2 0.1.0", "images": {"count": 2}, "teachers": [teacher]})["teachers"]
    [{'name': 'a', 'floor': 0.05}]
    """

    def cleaned(record: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in record.items() if k not in VOLATILE}

    return {
        **content,
        "images": cleaned(content["images"]),
        "teachers": [cleaned(t) for t in content["teachers"]],
    }
