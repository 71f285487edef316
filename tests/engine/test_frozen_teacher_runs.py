"""Training with a frozen teacher as a whole: inheritance, checkpoints, resuming."""

import os

import pytest
import torch

from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import DistillationTrainer


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    register_shapes(root, {"train": 8, "val": 4}, prefix="taught_shapes")


@pytest.fixture
def run_cfg(frozen_cfg, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_models.NUM_CLASSES", len(CLASSES))

    def make(**kd):
        cfg = frozen_cfg("ATSS", "ATSS")
        cfg.MODEL.KD.CHECK_TEACHER = 0
        for key, value in kd.items():
            cfg.MODEL.KD[key] = value
        cfg.INPUT.MIN_SIZE_TRAIN = (64,)
        cfg.DATASETS.TRAIN = ("taught_shapes_train",)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.SOLVER.MAX_ITER = 2
        cfg.SOLVER.STEPS = ()
        cfg.SEED = 1
        cfg.OUTPUT_DIR = str(tmp_path / "run")
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        return cfg

    return make


def start(cfg, resume=False):
    trainer = DistillationTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def equal_weights(trainer, prefix):
    student, teacher = trainer._trainer.model.student, trainer._trainer.model.teacher.detector
    theirs = dict(teacher.named_parameters())
    names = [name for name in theirs if name.startswith(prefix)]
    assert names
    return all(torch.equal(student.get_parameter(name), theirs[name]) for name in names)


@pytest.mark.parametrize("parts", [[], ["head"], ["neck", "head"]])
def test_the_student_begins_with_what_it_inherits(parts, run_cfg):
    trainer = start(run_cfg(INHERIT=parts))
    assert equal_weights(trainer, "head.cls_score") == ("head" in parts)
    assert equal_weights(trainer, "backbone.fpn_") == ("neck" in parts)
    assert not equal_weights(trainer, "backbone.bottom_up")


def test_a_resumed_student_keeps_what_it_has_learned(run_cfg):
    cfg = run_cfg(INHERIT=["head"])
    start(cfg).train()
    cfg.SOLVER.MAX_ITER = 4
    resumed = start(cfg, resume=True)
    assert resumed.start_iter == 2
    assert not equal_weights(resumed, "head.cls_score")


def test_counts_of_a_run_do_not_come_with_weights(run_cfg, monkeypatch):
    cfg = run_cfg(ENABLED=False, STUDENT="DDOD")
    cfg.MODEL.DDOD.NUM_CLASSES = len(CLASSES)
    trainer = start(cfg)
    trainer.train()
    counts = trainer._trainer.model.student.cls_positives
    assert counts.any()
    cfg.SOLVER.MAX_ITER = 4
    resumed = start(cfg, resume=True)._trainer.model.student
    assert torch.equal(resumed.cls_positives, counts)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/model_final.pth", f"{cfg.OUTPUT_DIR}/b"
    os.makedirs(cfg.OUTPUT_DIR)
    fresh = start(cfg)._trainer.model.student
    assert not fresh.cls_positives.any() and not fresh.box_positives.any()
    assert torch.equal(
        fresh.head.cls_score.weight, trainer._trainer.model.student.head.cls_score.weight
    )


def test_another_teacher_is_refused_before_anything_is_loaded(run_cfg):
    cfg = run_cfg()
    start(cfg).train()
    checkpoint = torch.load(cfg.MODEL.KD.TEACHER.WEIGHTS)
    checkpoint["model"]["head.cls_score.bias"] += 1
    torch.save(checkpoint, cfg.MODEL.KD.TEACHER.WEIGHTS)
    trainer = DistillationTrainer(cfg)
    before = trainer._trainer.model.student.head.cls_score.weight.clone()
    with pytest.raises(ValueError, match="another teacher: .* its weights; resume"):
        trainer.resume_or_load(resume=True)
    assert torch.equal(trainer._trainer.model.student.head.cls_score.weight, before)


def test_checkpoints_have_the_teachers_config_and_no_weights_of_it(run_cfg):
    cfg = run_cfg()
    start(cfg).train()
    checkpoint = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)
    assert {k.split(".")[0] for k in checkpoint["model"]} == {"student"}
    assert checkpoint["teacher"].keys() == {"config", "weights"}
    assert len(checkpoint["teacher"]["weights"]) == 64
    assert checkpoint["teacher"]["config"]["MODEL.META_ARCHITECTURE"] == "ATSS"


def test_a_teacher_that_finds_nothing_stops_the_run_before_it_writes(run_cfg):
    cfg = run_cfg(CHECK_TEACHER=4)
    cfg.INPUT.MIN_SIZE_TRAIN = (160,)  # group norm wants more than one cell
    with pytest.raises(ValueError, match=r"The teacher finds \d+ of \d+ objects"):
        start(cfg)
    assert not os.listdir(cfg.OUTPUT_DIR)
