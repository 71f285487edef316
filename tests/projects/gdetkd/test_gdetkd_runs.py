"""Training by G-DetKD as a whole: the queue in checkpoints, and what is left of it all."""

import pytest
import torch
from whole_runs import interrupt, register_few, run_cfg, train

from kd_d2.data.shapes_render import CLASSES


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    register_few(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def cfg_in(frozen_cfg, shapes, monkeypatch):
    monkeypatch.setattr("tiny_models.NUM_CLASSES", len(CLASSES))
    made = []

    def make(folder, **ckd):
        made.append(None)
        cfg = made[0] or frozen_cfg("FasterRCNN", "FasterRCNN")
        made[0], cfg = cfg, cfg.clone()
        cfg.MODEL.KD.HEADS = ["SGFI", "CKD", "RoIClassKD", "RoIBoxKD"]
        cfg.MODEL.KD.HEAD_WEIGHTS = [1e-4, 1.0, 1e-3, 1e-2]
        cfg.MODEL.KD.INHERIT = ["box_head"]
        cfg.MODEL.KD.CHECK_TEACHER = 0
        cfg.MODEL.KD.CKD.QUEUE_SIZE = 80
        cfg.SOLVER.BASE_LR = 1e-4
        for key, value in ckd.items():
            cfg.MODEL.KD.CKD[key] = value
        return run_cfg(cfg, folder)

    return make


def test_a_resumed_run_goes_on_with_its_queue(cfg_in, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(cfg_in(straight))
    interrupt(resumed, straight)
    trainer = train(cfg_in(resumed), resume=True)
    assert trainer.start_iter == 3
    files = [
        torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (straight, resumed)
    ]
    assert files[0].keys() == files[1].keys()
    for name, value in files[0].items():
        assert torch.equal(value, files[1][name]), name
    assert files[0]["heads.CKD.queue.filled"] == 80


def test_a_run_that_starts_from_weights_has_an_empty_queue(cfg_in, tmp_path, caplog):
    train(cfg_in(tmp_path / "first"))
    cfg = cfg_in(tmp_path / "second")
    cfg.MODEL.WEIGHTS = str(tmp_path / "first" / "model_final.pth")
    cfg.SOLVER.MAX_ITER = 1
    caplog.set_level("INFO")
    trainer = train(cfg)
    assert "queue of CKD's negatives starts empty (80 were there)" in caplog.text
    assert trainer._trainer.model.heads["CKD"].queue.filled == 32


def test_the_student_is_a_plain_detector(cfg_in, tmp_path):
    train(cfg_in(tmp_path / "run"))
    student = torch.load(tmp_path / "run" / "model_student.pth", weights_only=True)["model"]
    assert student and all(
        name.startswith(("backbone.", "proposal_generator.", "roi_heads.", "pixel_"))
        for name in student
    )
