"""Pictures while training: they are there, and training does not notice."""

import os
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine.defaults import seed_all_rng
from detectron2.utils import comm

from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import DistillationTrainer
from kd_d2.engine.vis_hook import DistillationPictures, undisturbed

STEPS = 4


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    register_shapes(root, {"train": 8, "val": 4, "unlabeled": 2}, prefix="drawn_shapes")


def run_cfg(cfg, folder, period, test=("drawn_shapes_val",)):
    classes = len(CLASSES)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.FCOS.NUM_CLASSES = classes
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MASK_FORMAT = "polygon"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("drawn_shapes_train",), test
    cfg.TEST.EVAL_PERIOD = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = STEPS
    cfg.SOLVER.STEPS = ()
    cfg.VIS_PERIOD = period
    cfg.OUTPUT_DIR = str(folder / str(period))
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    return cfg


def train(cfg, monkeypatch):
    """Trains; returns the trainer and the pictures that were put into its storage."""
    pictures = []
    # the last evaluation, which takes time and is not the subject
    monkeypatch.setattr(DistillationTrainer, "test", classmethod(lambda *args: {}))
    seed_all_rng(5)
    trainer = DistillationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    put = "detectron2.utils.events.EventStorage.put_image"
    monkeypatch.setattr(
        put, lambda storage, name, image: pictures.append((storage.iter, name, image))
    )
    # fvcore's scripted losses round differently in the first steps of a process
    with torch.jit.optimized_execution(False):
        trainer.train()
    return trainer, pictures


@pytest.mark.parametrize("arch", ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN"])
def test_training_is_the_same_bit_by_bit(arch, lgd_cfg, shapes, tmp_path, monkeypatch):
    """Without a seed for each step, with random proposals, sizes and flips."""
    states = []
    for period in (0, 2):
        cfg = lgd_cfg(arch, fpn_channels=64 if arch == "FCOS" else 32)
        cfg.SEED = -1
        trainer, pictures = train(run_cfg(cfg, tmp_path, period), monkeypatch)
        states.append({**trainer.model.state_dict(), "rng": torch.get_rng_state()})
        states[-1]["numpy"] = torch.tensor(np.random.rand(3))
        ours = [(i, name) for i, name, _ in pictures if name.startswith("distillation/")]
        expected = [(i, f"distillation/{k}") for i in (1, 3) for k in (0, 1)]
        assert ours == (expected if period else [])
        assert all(m.training for m in trainer.model.student.modules() if _trains(m))
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def _trains(module):
    return "Frozen" not in type(module).__name__


def test_pictures_are_what_tensorboard_takes(lgd_cfg, shapes, tmp_path, monkeypatch):
    _, pictures = train(run_cfg(lgd_cfg(), tmp_path, 4), monkeypatch)
    for _, _, image in pictures:
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.shape[2] > 900
    assert not torch.equal(pictures[0][2], pictures[1][2])


def test_tensorboard_gets_them(lgd_cfg, shapes, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing").__name__
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert event_accumulator
    cfg = run_cfg(lgd_cfg(), tmp_path, STEPS)  # in the last iteration, after the writers
    cfg.DATASETS.TEST = ()
    DistillationTrainer(cfg).train()
    events = EventAccumulator(cfg.OUTPUT_DIR)
    events.Reload()
    assert set(events.Tags()["images"]) == {"distillation/0", "distillation/1"}
    assert events.Images("distillation/0")[0].step == STEPS - 1


@pytest.mark.parametrize("test", [(), ("drawn_shapes_unlabeled",)])
def test_without_labelled_test_images_the_first_batch_is_shown(
    test, lgd_cfg, shapes, tmp_path, monkeypatch
):
    trainer, pictures = train(run_cfg(lgd_cfg(), tmp_path, 2, test), monkeypatch)
    assert [(i, n) for i, n, _ in pictures] == [
        (i, f"distillation/{k}") for i in (1, 3) for k in (0, 1)
    ]
    assert not trainer.model._forward_pre_hooks
    files = [x["file_name"] for x in _hook(trainer)._inputs]
    assert all("train_" in name for name in files)


def _hook(trainer):
    return next(h for h in trainer._hooks if isinstance(h, DistillationPictures))


def test_a_frozen_teacher(tiny_cfg, build, shapes, tmp_path, monkeypatch):
    cfg = tiny_cfg("FCOS", fpn_channels=64)
    cfg.MODEL.KD.STUDENT, cfg.MODEL.META_ARCHITECTURE = "FCOS", "FrozenTeacherDistiller"
    teacher = tiny_cfg("RetinaNet", fpn_channels=64)
    teacher.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    (tmp_path / "teacher.yaml").write_text(teacher.dump())
    torch.save({"model": build(teacher).state_dict()}, tmp_path / "teacher.pth")
    node = cfg.MODEL.KD.TEACHER
    node.NAME, node.CONFIG_FILE = "Frozen", str(tmp_path / "teacher.yaml")
    node.WEIGHTS = str(tmp_path / "teacher.pth")
    cfg.MODEL.KD.HEADS = ["PKD"]
    cfg.MODEL.KD.CHECK_TEACHER = 0
    _, pictures = train(run_cfg(cfg, tmp_path, 3), monkeypatch)
    assert [(i, n) for i, n, _ in pictures] == [(2, "distillation/0"), (2, "distillation/1")]


def test_pictures_that_fail_do_not_end_a_training(lgd_cfg, shapes, tmp_path, monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise RuntimeError("no font")

    monkeypatch.setattr("kd_d2.visualization.strip.draw_strip", fails)
    trainer, pictures = train(run_cfg(lgd_cfg(), tmp_path, 1), monkeypatch)
    assert trainer.iter == STEPS and not pictures
    assert caplog.text.count("training goes on without") == 1 and "no font" in caplog.text


def test_an_unreadable_test_image_is_passed_over(lgd_cfg, shapes, tmp_path, monkeypatch, caplog):
    name = "drawn_shapes_damaged"
    records = DatasetCatalog.get("drawn_shapes_val")
    records = [r for r in records if r["annotations"]][:2]
    records[0] = {**records[0], "file_name": str(tmp_path / "gone.png")}
    DatasetCatalog.register(name, lambda: records)
    try:
        _, pictures = train(run_cfg(lgd_cfg(), tmp_path, 4, (name,)), monkeypatch)
    finally:
        DatasetCatalog.remove(name)
    assert [n for _, n, _ in pictures] == ["distillation/0"]
    assert "gone.png" in caplog.text


def test_other_processes_draw_nothing_and_keep_nothing(lgd_cfg, shapes, tmp_path, monkeypatch):
    trainer = DistillationTrainer(run_cfg(lgd_cfg(), tmp_path, 1))
    hook = _hook(trainer)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    hook.before_train()
    assert not hook._inputs and not trainer.model._forward_pre_hooks
    from detectron2.utils.events import EventStorage

    with EventStorage() as trainer.storage:
        trainer.iter = 0
        trainer.storage.put_image("by Detectron2's mask head", torch.zeros(3, 2, 2))
        hook.after_step()
        assert not trainer.storage._vis_data


def test_plain_detectors_are_left_to_detectron2(tiny_cfg, lgd_cfg, shapes, tmp_path):
    plain, off = run_cfg(tiny_cfg(), tmp_path, 1), run_cfg(lgd_cfg(), tmp_path, 1)
    off.MODEL.KD.ENABLED = False
    for cfg in (plain, off, run_cfg(lgd_cfg(), tmp_path, 0)):
        hooks = DistillationTrainer(cfg)._hooks
        assert not any(isinstance(h, DistillationPictures) for h in hooks)


def test_undisturbed_restores_modes_and_random_numbers():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()).train()
    model[0].eval()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with pytest.raises(KeyError), undisturbed(model):
        assert not any(m.training for m in model.modules()) and not torch.is_grad_enabled()
        torch.rand(3), random.random(), np.random.rand()
        raise KeyError
    assert [m.training for m in model.modules()] == [True, False, True]
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
