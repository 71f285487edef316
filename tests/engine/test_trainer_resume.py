"""The trainer as a whole: an interrupted run ends with the weights of an uninterrupted one."""

import json

import pytest
import torch
from whole_runs import interrupt, register_few, run_cfg, train

from kd_d2.engine import DistillationTrainer


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    register_few(tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("arch", ["lgd", "FasterRCNN"])
def test_three_steps_and_three_more_are_six_steps(
    arch, tiny_cfg, lgd_cfg, shapes, tmp_path, caplog
):
    """Bit by bit, with phases, two optimisers, augmentation and (R-CNN) random proposals."""

    def cfg(folder):
        cfg = run_cfg(lgd_cfg() if arch == "lgd" else tiny_cfg(arch), folder)
        cfg.SOLVER.TEACHER.STEPS = [5]
        cfg.MODEL.KD.FREEZE_BACKBONE = 4 if arch == "lgd" else None
        return cfg

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(cfg(straight))
    interrupt(resumed, straight)
    caplog.set_level("INFO", "kd_d2")
    trainer = train(cfg(resumed), resume=True)
    assert trainer.start_iter == 3
    assert "continuing at iteration 3 of 6" in caplog.text

    files = [torch.load(f / "model_final.pth", weights_only=True) for f in (straight, resumed)]
    assert files[0]["iteration"] == files[1]["iteration"] == 5
    assert files[0]["model"].keys() == files[1]["model"].keys()
    for name, value in files[0]["model"].items():
        assert torch.equal(value, files[1]["model"][name]), name
    assert (resumed / "model_student.pth").exists() and (resumed / "student.yaml").exists()


def test_resume_with_nothing_to_resume_says_so(lgd_cfg, shapes, tmp_path, caplog):
    cfg = run_cfg(lgd_cfg(), tmp_path, max_iter=1)
    trainer = DistillationTrainer(cfg)
    caplog.set_level("INFO", "kd_d2")
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert f"Nothing to resume in {tmp_path}: starting from random weights" in caplog.text


def test_a_used_folder_and_a_finished_run_are_warned_of(lgd_cfg, shapes, tmp_path, caplog):
    train(run_cfg(lgd_cfg(), tmp_path, max_iter=2))
    caplog.clear()
    DistillationTrainer(run_cfg(lgd_cfg(), tmp_path, max_iter=2)).resume_or_load(resume=False)
    assert f"'{tmp_path}' has checkpoints of an earlier run, which this run will" in caplog.text
    caplog.clear()
    trainer = DistillationTrainer(run_cfg(lgd_cfg(), tmp_path, max_iter=1))
    trainer.resume_or_load(resume=True)
    assert "Nothing is left to train: SOLVER.MAX_ITER is 1, and the checkpoint has seen 2" in (
        caplog.text
    )
    assert "earlier run" not in caplog.text


def test_another_optimizer_is_refused_before_weights_are_loaded(lgd_cfg, shapes, tmp_path):
    train(run_cfg(lgd_cfg(), tmp_path, max_iter=1))
    cfg = run_cfg(lgd_cfg(), tmp_path, max_iter=2)
    cfg.SOLVER.OPTIMIZER = "AdamW" if cfg.SOLVER.OPTIMIZER == "SGD" else "SGD"
    trainer = DistillationTrainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="resume with the config"):
        trainer.resume_or_load(resume=True)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


def test_checkpoints_hold_student_teacher_and_heads_only(lgd_cfg, shapes, tmp_path):
    train(run_cfg(lgd_cfg(), tmp_path, max_iter=1))
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    parts = {name.split(".")[0] for name in state["model"]}
    assert parts == {"student", "teacher", "heads"}
    assert set(state["trainer"]["_trainer"]["optimizer"]) == {"student", "teacher"}


def test_evaluation_of_student_and_teacher(lgd_cfg, shapes, tmp_path):
    cfg = run_cfg(lgd_cfg(), tmp_path)
    cfg.DATASETS.TEST = ("trainer_shapes_val",)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    model = DistillationTrainer.build_model(cfg).train()
    assert set(DistillationTrainer.test(cfg, model)) == {"bbox"}
    cfg.MODEL.KD.EVAL_TEACHER = True
    results = DistillationTrainer.test(cfg, model)
    assert set(results) == {"bbox", "bbox_teacher"}
    assert results["bbox_teacher"].keys() == results["bbox"].keys()
    assert model.training and model.student.training
    student, teacher = (
        json.loads((tmp_path / f / "coco_instances_results.json").read_text())
        for f in ("inference", "inference_teacher")
    )
    assert student and student != teacher

    cfg.DATASETS.TEST = ("trainer_shapes_val", "trainer_shapes_train")
    results = DistillationTrainer.test(cfg, model)
    assert set(results) == set(cfg.DATASETS.TEST)
    assert all(set(r) == {"bbox", "bbox_teacher"} for r in results.values())


def test_unknown_evaluators_are_named(tiny_cfg):
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get("kd_no_evaluator").evaluator_type = "guess"
    with pytest.raises(ValueError, match="kd_no_evaluator.*'guess'.*coco, lvis"):
        DistillationTrainer.build_evaluator(tiny_cfg(), "kd_no_evaluator")
    MetadataCatalog.remove("kd_no_evaluator")


def test_scaling_to_another_number_of_processes(lgd_cfg):
    cfg = lgd_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 16, 1000
    cfg.SOLVER.TEACHER.BASE_LR, cfg.SOLVER.TEACHER.STEPS = 0.4, [600, 800]
    cfg.MODEL.KD.FREEZE_BACKBONE = 200
    cfg.MODEL.KD.LGD.PRE_NONDISTILL = 0.25
    scaled = DistillationTrainer.auto_scale_workers(cfg, 4)
    assert scaled.SOLVER.IMS_PER_BATCH == 8 and scaled.SOLVER.MAX_ITER == 2000
    assert scaled.SOLVER.TEACHER.BASE_LR == 0.2
    assert list(scaled.SOLVER.TEACHER.STEPS) == [1200, 1600]
    assert scaled.MODEL.KD.FREEZE_BACKBONE == 400
    assert scaled.MODEL.KD.LGD.PRE_NONDISTILL == 0.25
    assert DistillationTrainer.auto_scale_workers(cfg, 8).SOLVER.MAX_ITER == 1000


def test_mistakes_are_found_before_anything_is_built(lgd_cfg, shapes, tmp_path, monkeypatch):
    def not_yet(cfg):
        raise AssertionError("the model was built")

    monkeypatch.setattr(DistillationTrainer, "build_model", not_yet)
    cfg = run_cfg(lgd_cfg(), tmp_path)
    cfg.DATASETS.TRAIN = ("trainer_shapes_trian",)
    with pytest.raises(ValueError, match="trainer_shapes_train"):
        DistillationTrainer(cfg)
    cfg = run_cfg(lgd_cfg(), tmp_path)
    cfg.MODEL.RETINANET.NUM_CLASSES = 7
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        DistillationTrainer(cfg)
    cfg = run_cfg(lgd_cfg(), tmp_path)
    cfg.MODEL.KD.TEACHER.NAME = "LabelEncodr"
    with pytest.raises(ValueError, match="LabelEncoder"):
        DistillationTrainer(cfg)
