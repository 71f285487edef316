"""Whole runs of the trainer on a few images of the built-in data set."""

import os

import torch
from detectron2.engine.defaults import seed_all_rng

from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import DistillationTrainer


def register_few(root):
    """A few images under names of their own."""
    register_shapes(root, {"train": 8, "val": 4}, prefix="trainer_shapes")


def run_cfg(cfg, folder, max_iter=6):
    classes = len(CLASSES)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.INPUT.MIN_SIZE_TRAIN = (48, 64)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TRAIN = ("trainer_shapes_train",)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = max_iter
    cfg.SOLVER.STEPS = (4,)
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.SEED = 5
    cfg.OUTPUT_DIR = str(folder)
    os.makedirs(folder, exist_ok=True)
    return cfg


def train(cfg, resume=False):
    seed_all_rng(cfg.SEED)  # as default_setup does
    trainer = DistillationTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    # fvcore's scripted losses round differently in the first steps of a process, while torch
    # profiles them; without that everything is exact
    with torch.jit.optimized_execution(False):
        trainer.train()
    return trainer


def interrupt(folder, run, kept="model_0000002.pth"):
    """What an interrupted run leaves: its first checkpoint."""
    folder.mkdir()
    (folder / kept).write_bytes((run / kept).read_bytes())
    (folder / "last_checkpoint").write_text(kept)
