"""Whether an export is what was written, and says of itself what its run says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .coco_files import read_info
from .provenance import lasting, provenance
from .publish import NEW, SIDE_CAR, read_side_car, tree_sha256
from .run_folder import RunFolder

_HUMAN = "contains_human_labels"
_OF_SIDE_CAR = ("files", "written", _HUMAN)  # files do not say the first two; the third has its own


def export_faults(folder: Path) -> list[str]:
    """What is wrong with an exported folder, without a look at its run."""
    faults: list[str] = []
    if (folder / NEW).exists():
        faults.append(f"{folder} is of an export that was cut off: export again.")
    content = read_side_car(folder)
    made_of = None if content is None else _lasting(content)
    if content is None or made_of is None:
        return [*faults, f"{folder / SIDE_CAR} is missing or cannot be read: export again."]
    if content.get(_HUMAN) is not False:
        faults.append(
            f"{folder / SIDE_CAR} does not say that there are no human labels in these files."
        )
    unlike = []
    for name, expected in sorted(content["files"].items()):
        path = folder / name
        if not path.exists():
            faults.append(f"{path} is missing: export again.")
        elif tree_sha256(path) != expected:
            faults.append(
                f"{path} was changed after it was exported: if these are labels by hand, move them "
                "to another folder, and then export again."
            )
        elif name.startswith(("pseudo", "ignore", "dropped")):
            info = _info(path)
            if info.pop(_HUMAN, None) is not False:
                faults.append(
                    f"{path} does not say that there are no human labels in it: export again."
                )
            elif info != made_of:
                unlike.append(name)
    if unlike:
        faults.append(
            f"{folder / SIDE_CAR} does not say what {', '.join(unlike)} say of how these labels "
            "were made: export again."
        )
    return faults


def other_run_faults(run: RunFolder, folder: Path) -> list[str]:
    """Whether an export without faults is of what the run now holds."""
    said = _lasting(read_side_car(folder) or {}) or {}
    now = json.loads(json.dumps(lasting(provenance(run)), default=str))
    if said["images"].get("list") != run.image_list:
        return [f"{folder} is of another list of images: export again."]
    if _hash(said.get("filter")) != _hash(now.get("filter")):
        return [f"{folder} is of an earlier filter, with other thresholds or boxes: export again."]
    keys = ("images", "teachers", "merge", "filter")
    unlike = [key for key in keys if said.get(key) != now.get(key)]
    if unlike:
        return [
            f"{folder / SIDE_CAR} does not say of {', '.join(unlike)} what the run says: export "
            "again."
        ]
    return []


def _lasting(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a side-car says that its files say, too; None: nobody can read it."""
    try:
        made_of = lasting(content)
    except (KeyError, TypeError, AttributeError):
        return None
    return {key: value for key, value in made_of.items() if key not in _OF_SIDE_CAR}


def _hash(stage: Any) -> Any:
    return stage.get("hash") if isinstance(stage, dict) else None


def _info(path: Path) -> dict[str, Any]:
    """What a COCO file says of how it was made; empty if it does not."""
    try:
        return dict(read_info(path)["pseudo"])
    except (KeyError, TypeError, ValueError):
        return {}
