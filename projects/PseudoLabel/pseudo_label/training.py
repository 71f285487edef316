"""Runs the phases of a training with pseudo labels one after the other, in the processes of a run.

labels/                   phase A, see ``run_folder``
phase_b/  phase_c/        ordinary trainings; phase.json says of which labels, and whether finished
baseline_labels/  baseline_joint/
"""

import argparse
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from kd_d2.engine import choose_device, user_errors

from .check_phases import count_labelled
from .class_lists import PhaseClasses, class_lists
from .earlier_labels import warn_of_other_labels
from .generate import generate
from .leaks import check_no_leak
from .merge import unify_classes
from .offline import check_offline, label_images
from .phase_data import MIXED, VIEW
from .phase_record import (
    check_resumable,
    earlier_record,
    learns_pseudo_labels,
    length,
    what_it_learns,
    write_record,
)
from .phases import Phase, plan
from .prepare import prepare_run
from .recipe import (
    export_folder,
    export_settings,
    filter_settings,
    generate_settings,
    image_sources,
    labels_folder,
    labels_own_images,
    makes_labels,
    merge_settings,
    people_s_labels,
    teacher_sources,
    unified,
)
from .relabeled import write_view
from .run_folder import RunFolder
from .sources import from_names

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
    results, anew = None, not args.resume
    with user_errors():
        classes = class_lists(cfg)
        phases = plan(cfg, classes, count_labelled(cfg))
        if args.resume:  # before labels are replaced
            check_resumable(cfg, phases)
        if not makes_labels(cfg) and any(map(learns_pseudo_labels, phases)):
            warn_of_other_labels(cfg)
        if makes_labels(cfg):
            make_labels(cfg, classes)
    for phase in phases:
        with user_errors():
            learned = what_it_learns(cfg, phase)
            before = {} if anew else earlier_record(phase, "labels", learned)
            if before.get("finished") and learned.items() <= before.items():
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
            write_record(phase, {**learned, "finished": True, "length": length(phase)})
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


def _begin(phase: Phase, learned: dict) -> None:
    for file, view in ((VIEW, phase.view), (MIXED, phase.mixed)):
        if view is not None:
            write_view(Path(phase.cfg.OUTPUT_DIR, file), view)
    write_record(phase, learned)


def _close_logs() -> None:
    """Detectron2 would write each line once for each phase so far."""
    for name in ("detectron2", "fvcore", "kd_d2"):
        for handler in logging.getLogger(name).handlers[:]:
            logging.getLogger(name).removeHandler(handler)
