"""Runs the phases of a training with pseudo labels one after the other, in the processes of a run.

labels/                   phase A, see ``run_folder``
phase_b/  phase_c/        ordinary trainings; phase.json says of which labels, and whether finished
baseline_labels/  baseline_joint/
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from kd_d2.checkpoint import atomic_write, file_sha256
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import without_unused_nodes
from kd_d2.data.reading import read_dataset
from kd_d2.engine import choose_device, user_errors

from .class_lists import PhaseClasses, class_lists
from .generate import generate
from .leaks import check_no_leak
from .merge import unify_classes
from .offline import check_offline, label_images
from .phases import VIEW, Phase, exported, plan
from .prepare import prepare_run
from .publish import read_side_car
from .recipe import (
    export_folder,
    export_settings,
    filter_settings,
    generate_settings,
    image_sources,
    labels_are_made,
    labels_folder,
    labels_own_images,
    merge_settings,
    people_s_labels,
    teacher_sources,
    unified,
)
from .relabeled import write_view
from .run_folder import RunFolder, hash_of
from .sources import from_names

MARKER = "phase.json"
# Keys of PSEUDO_LABEL that labels depend on
_OF_LABELS = (
    *("TEACHERS", "CLASS_MAPS", "UNLABELED", "LABELED", "PHASE_B_IMAGES", "CLASSES"),
    *("GENERATE", "MERGE", "FILTER", "WEIGHTS", "W_MIN"),
)
# generating labels takes as long as it takes
_LONGEST = timedelta(days=30)

logger = logging.getLogger("kd_d2.pseudo_label")


def run_phases(cfg: CfgNode, args: argparse.Namespace, train: Callable):
    """Phases A, B and C, as far as ``PSEUDO_LABEL`` asks for them.

    Phase A always goes on where it was left; trainings do with ``args.resume``, and those that are
    finished are passed over then.

    Args:
        cfg: checked by ``check_recipe``.
        args: as Detectron2's ``default_argument_parser`` gives them.
        train: trains an ordinary config: (cfg, args) -> results.

    Returns:
        what the last training returned.

    Mistakes that a user can mend end the process, see ``user_errors``.
    """
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="kd_d2")
    choose_device(cfg, args.num_gpus)
    node, results, anew = cfg.PSEUDO_LABEL, None, not args.resume
    with user_errors():
        classes = class_lists(cfg)
        num_labeled = sum(len(read_dataset(name)) for name in node.LABELED)
        phases = plan(cfg, classes, num_labeled)
        if args.resume:  # before labels are replaced
            for phase in phases:
                _check_same(phase, _recipe_hash(cfg, phase), "recipe")
        if labels_are_made(cfg):
            make_labels(cfg, classes)
    for phase in phases:
        learned = {"config": _hash(phase.cfg), "recipe": _recipe_hash(cfg, phase)}
        with user_errors():
            learned |= {"labels": _labels_hash(phase), "weights": _weights_hash(phase)}
            before = {} if anew else _check_same(phase, learned["labels"], "labels")
            if before == {**learned, "finished": True}:
                logger.info("Finished before: %s.", phase.cfg.OUTPUT_DIR)
                continue
            # phase C goes on only from the weights of B with which it has begun
            resume = not anew and before.get("weights") == learned["weights"]
            if comm.is_main_process():
                _begin(phase, learned)
        comm.synchronize()
        _close_logs()
        results = train(phase.cfg, argparse.Namespace(**{**vars(args), "resume": resume}))
        if comm.is_main_process():
            _write(phase.cfg, {**learned, "finished": True})
        anew = True  # if what follows has begun, then with other weights
    return results


def make_labels(cfg: CfgNode, classes: PhaseClasses) -> None:
    """Phase A, by all processes of the run together; what is done already is kept.

    Raises:
        ValueError, OSError: it cannot be done.
    """
    group = None
    if comm.get_world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=_LONGEST)
    settings = generate_settings(cfg, _device(cfg))
    folder, teachers = labels_folder(cfg), teacher_sources(cfg)
    root, images = from_names(image_sources(cfg), leave_out=[cfg.OUTPUT_DIR, folder])
    check_no_leak(images, cfg.DATASETS.TEST)
    about = {"licence": cfg.PSEUDO_LABEL.LICENCE, "origin": cfg.PSEUDO_LABEL.ORIGIN}
    merge, keep = merge_settings(cfg, classes.taught), filter_settings(cfg)
    export = export_settings(cfg)
    truth = people_s_labels(cfg) if cfg.PSEUDO_LABEL.LABELED else None
    labels, truth = merge.labels or truth, truth if labels_own_images(cfg) else None
    # before there is a run, which other images would not fit
    check_offline(
        [x.name for x in teachers],
        unified(cfg, classes.taught),
        images,
        merge,
        keep,
        export,
        labels=labels,
        truth=truth,
    )
    run = prepare_run(folder, images, root, teachers, settings, **about)
    unify_classes(run, merge)  # whatever is wrong there, is wrong before hours are spent
    report = generate(run, settings)
    logger.info("%d detections in %d images.", report.detections, report.images)
    if comm.is_main_process():
        # as it began, whatever machine and version go on with it
        began = RunFolder(folder)
        label_images(began, merge, keep, export, labels=labels, truth=truth)
        logger.info("Labels: %s; look at report/ and sheet/ beside it.", export_folder(cfg))
    if group is not None:
        dist.barrier(group)


def _device(cfg: CfgNode) -> str:
    on_gpu = cfg.MODEL.DEVICE == "cuda" and comm.get_world_size() > 1
    return f"cuda:{comm.get_local_rank()}" if on_gpu else cfg.MODEL.DEVICE


def _hash(cfg: CfgNode) -> str:
    """Equal for phases that train the same; where they run does not matter."""
    same = without_unused_nodes(cfg)
    same.MODEL.DEVICE = same.OUTPUT_DIR = ""
    return hash_of(same.dump())


def _learns_pseudo_labels(phase: Phase) -> bool:
    completed = phase.view is not None and phase.view.pseudo_labels is not None
    return completed or exported(phase.cfg) in phase.cfg.DATASETS.TRAIN


def _recipe_hash(cfg: CfgNode, phase: Phase) -> str | None:
    """Of how the pseudo labels that a phase learns are made; None if it learns none."""
    node = cfg.PSEUDO_LABEL
    return hash_of([node[key] for key in _OF_LABELS]) if _learns_pseudo_labels(phase) else None


def _labels_hash(phase: Phase) -> str | None:
    """Of the pseudo labels that a phase learns; None if it learns none, or there are none yet."""
    content = read_side_car(Path(export_folder(phase.cfg)))
    known = content is not None and _learns_pseudo_labels(phase)
    return hash_of(content["files"]) if known else None


def _weights_hash(phase: Phase) -> str | None:
    """Of the weights of phase B that phase C begins with; None for the others."""
    path = phase.cfg.MODEL.WEIGHTS
    return file_sha256(path) if phase.name == "c" and os.path.isfile(path) else None


def _check_same(phase: Phase, now: str | None, key: str) -> dict:
    """What was noted of a phase when it began; empty if it has not begun.

    Raises:
        ConfigError: it has learned other labels than those of now.
    """
    path = Path(phase.cfg.OUTPUT_DIR, MARKER)
    before = comm.all_gather(_read(path) if comm.is_main_process() else None)[0]
    if before and before[key] != now:
        raise ConfigError(
            f"{phase.cfg.OUTPUT_DIR} was trained on other pseudo labels than those of now: choose "
            "another OUTPUT_DIR, or leave out --resume to train it anew."
        )
    return before


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _begin(phase: Phase, learned: dict) -> None:
    if phase.view is not None:
        write_view(Path(phase.cfg.OUTPUT_DIR, VIEW), phase.view)
    _write(phase.cfg, learned)


def _write(cfg: CfgNode, content: dict) -> None:
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    with atomic_write(os.path.join(cfg.OUTPUT_DIR, MARKER), "w") as f:
        json.dump(content, f, indent=1)


def _close_logs() -> None:
    """Detectron2 would write each line once for each phase so far."""
    for name in ("detectron2", "fvcore", "kd_d2"):
        for handler in logging.getLogger(name).handlers[:]:
            logging.getLogger(name).removeHandler(handler)
