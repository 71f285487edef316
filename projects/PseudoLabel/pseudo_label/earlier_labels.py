"""Labels that lie there already: whether they are those that a config would make."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .publish import read_side_car
from .recipe import export_folder, teacher_sources

logger = logging.getLogger("kd_d2.pseudo_label")


def warn_of_other_labels(cfg: CfgNode) -> None:
    """Logs who has made the labels of a training without phase A, and how, if its config says
    something else."""
    content = read_side_car(Path(export_folder(cfg)))
    if content and (different := list(_differences(content, cfg))):
        logger.warning(
            "%s are learned as they are, though they are not those of this config: %s.",
            export_folder(cfg),
            "; ".join(different),
        )


def _differences(content: Mapping[str, Any], cfg: CfgNode) -> Iterator[str]:
    made_by, asked = content.get("teachers", []), teacher_sources(cfg)
    before, now = ([x["name"] for x in made_by], [x.name for x in asked])
    if before != now:
        yield f"their teachers were {', '.join(before)}, and TEACHERS names {', '.join(now)}"
    else:
        for old, new in zip(made_by, asked, strict=True):
            for key, given in (("config_file", new.config_file), ("weights", new.weights)):
                if not _same_file(old[key], given):
                    yield f"{new.name}'s {key} was {old[key] or '-'}, and now is {given or '-'}"
    merge, settings = cfg.PSEUDO_LABEL.MERGE, content.get("merge", {}).get("settings")
    if settings is None:
        return
    mode = settings["threshold_mode"]
    if mode != merge.THRESHOLDS:
        yield f"their thresholds are {mode}, and MERGE.THRESHOLDS is {merge.THRESHOLDS}"
    elif mode == "file" and not _same_file(settings["threshold_file"], merge.THRESHOLD_FILE):
        file = merge.THRESHOLD_FILE
        yield f"their thresholds are those of {settings['threshold_file']}, and not of {file}"
    elif mode != "file" and settings["threshold"] != merge.THRESHOLD:
        yield f"their threshold is {settings['threshold']}, and MERGE.THRESHOLD {merge.THRESHOLD}"


def _same_file(noted: str, given: str) -> bool:
    """Whether a path that was noted, perhaps on another machine, is what a config gives.

    >>> _same_file("/a/teacher.yaml", "teacher.yaml"), _same_file("/a/teacher.yaml", "her.yaml")
    (True, False)
    """
    return noted in (given, os.path.abspath(given)) or bool(given) and noted.endswith(f"/{given}")
