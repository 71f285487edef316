"""What is noted of a phase in its folder, ``phase.json``: of what it was trained, and whether it is
finished."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from kd_d2.checkpoint import atomic_write, file_sha256
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import without_unused_nodes

from .phase_data import exported
from .phases import Phase
from .publish import read_side_car
from .recipe import export_folder
from .relabeled import PREFIX as RELABELED
from .relabeled import View
from .run_folder import hash_of
from .trained_on import PREFIX as EXPORTED

MARKER = "phase.json"
# Keys of PSEUDO_LABEL that labels depend on
_OF_LABELS = (
    *("TEACHERS", "CLASS_MAPS", "UNLABELED", "LABELED", "PHASE_B_IMAGES", "CLASSES"),
    *("GENERATE", "MERGE", "FILTER", "WEIGHTS", "W_MIN"),
)


def what_it_learns(cfg: CfgNode, phase: Phase) -> dict[str, str | None]:
    """Hashes of a phase's settings, of how its labels are made, of these, and of the weights that
    it begins with; None of what it does not have.

    Args:
        cfg: of all phases.
    """
    return {
        "config": _config_hash(phase),
        "recipe": _recipe_hash(cfg, phase),
        "labels": _labels_hash(phase),
        "weights": _weights_hash(phase),
    }


def learns_pseudo_labels(phase: Phase) -> bool:
    completed = phase.view is not None and phase.view.pseudo_labels is not None
    mixed = phase.mixed is not None or exported(phase.cfg) in phase.cfg.DATASETS.TRAIN
    return completed or mixed


def length(phase: Phase) -> int:
    return phase.cfg.SOLVER.MAX_ITER


def check_resumable(cfg: CfgNode, phases: Sequence[Phase]) -> None:
    """
    Raises:
        ConfigError: a phase has learned other labels than those that will be made, or is finished
            and was trained with other settings.
    """
    passed_over = True
    for phase in phases:
        now = {"config": _config_hash(phase), "recipe": _recipe_hash(cfg, phase)}
        before = earlier_record(phase, "recipe", now)
        finished = before.get("finished") and before.get("weights") == _weights_hash(phase)
        same = before.get("config") == now["config"]
        # where phase B is trained, C begins anew
        if passed_over and finished and not same and length(phase) <= before.get("length", 0):
            raise ConfigError(
                f"{phase.cfg.OUTPUT_DIR} is finished, and was trained with other settings, so that "
                "--resume would train nothing: choose another OUTPUT_DIR, or train it anew without "
                "--resume (by itself with PSEUDO_LABEL.PHASES)."
            )
        passed_over = passed_over and finished and same


def earlier_record(phase: Phase, key: str, now: dict[str, str | None]) -> dict:
    """What was noted of a phase when it began; empty if it has not begun.

    Args:
        key: "recipe" or "labels", which must be as they were.

    Raises:
        ConfigError: it has learned other labels than those of now.
    """
    path = Path(phase.cfg.OUTPUT_DIR, MARKER)
    before = comm.all_gather(_read(path) if comm.is_main_process() else None)[0]
    if before and before.get(key) != now[key]:
        raise ConfigError(
            f"{phase.cfg.OUTPUT_DIR} was trained on other pseudo labels than those of now: choose "
            "another OUTPUT_DIR, or leave out --resume to train it anew."
        )
    return before


def write_record(phase: Phase, content: dict) -> None:
    os.makedirs(phase.cfg.OUTPUT_DIR, exist_ok=True)
    with atomic_write(os.path.join(phase.cfg.OUTPUT_DIR, MARKER), "w") as f:
        json.dump(content, f, indent=1)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _config_hash(phase: Phase) -> str:
    """Equal for phases that train the same, but for what the other hashes say.

    Where they run, and how they are watched, does not matter.
    """
    same = without_unused_nodes(phase.cfg)
    same.MODEL.DEVICE = same.OUTPUT_DIR = ""
    same.DATASETS.TEST, same.TEST.EVAL_PERIOD, same.VIS_PERIOD = (), 0, 0
    same.DATALOADER.NUM_WORKERS = same.SOLVER.CHECKPOINT_PERIOD = 0
    same.DATASETS.TRAIN = _without_places(phase.cfg.DATASETS.TRAIN)
    if _begins_with_a_file(phase):
        same.MODEL.WEIGHTS = ""
    return hash_of([same.dump(), *map(_described, (phase.view, phase.mixed))])


def _without_places(names: Sequence[str]) -> list[str]:
    return [
        name.partition(":")[0] if name.startswith((f"{EXPORTED}:", f"{RELABELED}:")) else name
        for name in names
    ]


def _described(view: View | None) -> dict | None:
    if view is None:
        return None
    completed = view.pseudo_labels is not None
    datasets = _without_places(view.datasets)
    return asdict(view) | {"pseudo_labels": completed, "datasets": datasets}


def _recipe_hash(cfg: CfgNode, phase: Phase) -> str | None:
    """Of how the pseudo labels that a phase learns are made; None if it learns none."""
    node = cfg.PSEUDO_LABEL
    return hash_of([node[key] for key in _OF_LABELS]) if learns_pseudo_labels(phase) else None


def _labels_hash(phase: Phase) -> str | None:
    """Of the pseudo labels that a phase learns; None if it learns none, or there are none yet."""
    content = read_side_car(Path(export_folder(phase.cfg)))
    known = content is not None and learns_pseudo_labels(phase)
    return hash_of(content["files"]) if known else None


def _weights_hash(phase: Phase) -> str | None:
    """Of the weights of phase B that phase C begins with; None for the others."""
    return file_sha256(phase.cfg.MODEL.WEIGHTS) if _begins_with_a_file(phase) else None


def _begins_with_a_file(phase: Phase) -> bool:
    return phase.name == "c" and os.path.isfile(phase.cfg.MODEL.WEIGHTS)
