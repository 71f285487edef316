#!/usr/bin/env python
"""Train, resume or evaluate a distilled detector, or a plain one from the same kind of config.

    python train_net.py --config-file configs/LGD/fcos_x101.yaml --num-gpus 8
    python train_net.py --config-file ... --num-gpus 8 --resume
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc_per_node 8 train_net.py --config-file ...

A config of configs/PseudoLabel runs its three phases: teachers label images, the student learns
their labels, and people's.

Training writes checkpoints to OUTPUT_DIR and ends with model_student.pth and student.yaml, the
student alone, which stock Detectron2 loads. ``KEY VALUE`` pairs at the end override the config.
Mistakes in the command or config end with one sentence and exit code 2.
"""

import logging
import os
import sys

from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from kd_d2.checkpoint import (
    CheckpointError,
    KDCheckpointer,
    earlier_file_kept,
    local_weights_path,
)
from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import is_distiller, student_config
from kd_d2.data.mappers import ImageError
from kd_d2.data.requirements import check_datasets, check_num_classes
from kd_d2.engine import (
    DistillationTrainer,
    LaunchError,
    check_batch,
    choose_device,
    launch,
    load_config,
    user_errors,
)
from kd_d2.projects.pseudo_label.check_recipe import check_recipe
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.phases import evaluated
from kd_d2.projects.pseudo_label.recipe import labels_images
from kd_d2.projects.pseudo_label.training import run_phases

logger = logging.getLogger("kd_d2.train_net")


def read_config(args):
    """Build the config of this run and check it, its data and its weights."""
    cfg = load_config(args.config_file, args.opts)
    check_pseudo_label_config(cfg)
    if args.eval_only and is_distiller(cfg) and not cfg.MODEL.KD.EVAL_TEACHER:
        # The student alone is evaluated, so a frozen teacher need not be at hand
        cfg = student_config(cfg)
    check_config(cfg)
    if labels_images(cfg) and args.eval_only:
        cfg = evaluated(cfg)
    if labels_images(cfg):
        check_recipe(cfg)
    else:
        check_datasets(cfg, ("TEST",) if args.eval_only else ("TRAIN", "TEST"))
        check_num_classes(cfg, student_config(cfg).MODEL.META_ARCHITECTURE)
    if not args.eval_only:
        check_batch(cfg, args.num_gpus, args.num_machines)
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS and not args.resume:
        local_weights_path(cfg.MODEL.WEIGHTS)
    return cfg


def setup(cfg, args):
    """Set up device, logging and seeds; writes the config to OUTPUT_DIR."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="kd_d2")
    choose_device(cfg, args.num_gpus)
    cfg.freeze()
    default_setup(cfg, args)


def evaluate(cfg, resume=False):
    """Evaluate MODEL.WEIGHTS: a distillation checkpoint, an exported student or a stock one."""
    with user_errors():
        model = DistillationTrainer.build_model(cfg)
        checkpointer = KDCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        if resume and checkpointer.resumed_from is None:
            raise CheckpointError(f"--resume, but there is no checkpoint in '{cfg.OUTPUT_DIR}'.")
        parts = checkpointer.loaded_parts
        if not parts:
            raise CheckpointError(
                "There is nothing to evaluate: set MODEL.WEIGHTS, or pass --resume for the last "
                "checkpoint in OUTPUT_DIR."
            )
        checkpointer.require_whole("student" if "student" in parts else "model")
        if parts.get("teacher", (1, 1))[0] == 0:
            logger.warning("The weights hold no teacher: evaluating the student alone.")
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KD.EVAL_TEACHER = False
            cfg.freeze()
        elif "teacher" in parts:
            checkpointer.require_whole("teacher")
    with user_errors(ImageError, OSError):
        results = DistillationTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args):
    """What every process of the run does."""
    with user_errors():
        cfg = read_config(args)
    return run_phases(cfg, args, run) if labels_images(cfg) else run(cfg, args)


def run(cfg, args):
    """Train or evaluate, by a config that was checked."""
    with user_errors():
        # Who evaluates a run by another config will want to resume it by its own
        of_a_run = os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
        config = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with earlier_file_kept(config, always=args.eval_only and of_a_run):
            setup(cfg, args)
            if not args.eval_only:
                trainer = DistillationTrainer(cfg)
                trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    # Of the ValueErrors those that say what to do: another one is a mistake of the code
    with user_errors(FloatingPointError, ConfigError, ImageError, OSError):
        return trainer.train()


def invoke_main():
    """Entry point of the command line."""
    parser = default_argument_parser()
    # Detectron2's is an address of this machine, which others would wait for in vain
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args()
    with user_errors():
        read_config(args)  # before any other process is started
    try:
        with user_errors(LaunchError):
            launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    except KeyboardInterrupt:
        goes_on = "" if args.eval_only else " --resume goes on from the last checkpoint."
        print(f"Stopped.{goes_on}", file=sys.stderr, flush=True)
        sys.exit(130)


if __name__ == "__main__":
    invoke_main()
