"""Runs that begin with a detector of other classes, by their names."""

import logging

import pytest
import torch
from tiny_models import build
from whole_runs import register_few, run_cfg, train

from kd_d2.checkpoint import CheckpointError
from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.config.teacher import own_settings
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import DistillationTrainer

# what the file knows; of the data's classes the first and the last are strange to it
KNOWN = ["banana", *reversed(CLASSES[1:-1]), "apple"]
ANCHORS = 6


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    register_few(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def file(tmp_path, tiny_cfg):
    """A RetinaNet with k in the class scores of class k."""
    cfg = tiny_cfg()
    cfg.MODEL.RETINANET.NUM_CLASSES = len(KNOWN)
    state = build(cfg).state_dict()
    state["head.cls_score.bias"] = torch.arange(float(len(KNOWN))).repeat(ANCHORS)
    torch.save({"model": state}, tmp_path / "known.pth")
    return str(tmp_path / "known.pth")


def biases(trainer):
    """(A, K)"""
    model = trainer.model
    return getattr(model, "student", model).head.cls_score.bias.detach().view(ANCHORS, -1)


@pytest.mark.parametrize("kind", ["plain", "lgd", "frozen"])
def test_a_run_begins_with_the_rows_of_its_classes(
    kind, file, tiny_cfg, lgd_cfg, frozen_cfg, shapes, tmp_path, caplog
):
    cfg = {"plain": tiny_cfg, "lgd": lgd_cfg, "frozen": frozen_cfg}[kind]()
    cfg = run_cfg(cfg, tmp_path / "run")
    cfg.MODEL.KD.CHECK_TEACHER = 0
    cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_CLASSES = file, KNOWN
    trainer = DistillationTrainer(cfg)
    fresh = biases(trainer).clone()
    with caplog.at_level(logging.INFO):
        trainer.resume_or_load(resume=False)
    for k, name in enumerate(CLASSES):
        wanted = fresh[:, k] if k in (0, 5) else torch.full((ANCHORS,), float(KNOWN.index(name)))
        assert torch.equal(biases(trainer)[:, k], wanted), name
    model = trainer.model
    theirs = torch.load(file)["model"]
    for name, value in getattr(model, "student", model).state_dict().items():
        assert "cls_score" in name or torch.equal(value, theirs[name]), name
    wanted = f"copied by their names: {', '.join(CLASSES[1:-1])}; these begin anew: {CLASSES[0]}, "
    assert caplog.text.count(wanted) == 1
    assert "shape" not in caplog.text.replace("trainer_shapes", "")


def test_a_run_that_goes_on_keeps_its_rows_and_gives_them_away_in_its_order(
    file, lgd_cfg, shapes, tmp_path, caplog
):
    cfg = run_cfg(lgd_cfg(), tmp_path / "run", max_iter=1)
    cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_CLASSES = file, KNOWN
    end = biases(train(cfg))
    exported = (tmp_path / "run" / "student.yaml").read_text()
    assert "model_student.pth" in exported and "WEIGHTS_CLASSES" not in exported
    with caplog.at_level(logging.INFO):
        trainer = DistillationTrainer(cfg)
        trainer.resume_or_load(resume=True)
    assert torch.equal(biases(trainer), end)
    assert "by their names" not in caplog.text


def test_exported_students_of_our_own_kind_name_no_classes_of_another_file(tiny_cfg):
    from kd_d2.engine.export import student_yaml

    cfg = tiny_cfg("FCOS")
    cfg.MODEL.WEIGHTS_CLASSES = KNOWN
    assert "WEIGHTS_CLASSES" not in student_yaml(cfg, "model_student.pth")


def test_what_cannot_be_is_refused(file, tiny_cfg, shapes, tmp_path):
    cfg = run_cfg(tiny_cfg(), tmp_path / "run")
    trainer = DistillationTrainer(cfg)
    for weights, known, words in (
        (file, KNOWN[1:], "has 5 names, .*in the order of its outputs"),
        (file, [*KNOWN[1:], KNOWN[1]], f"has the class {KNOWN[1]} more than once"),
        (file, list("abcdef"), "have no class in common"),
        ("", KNOWN, "MODEL.WEIGHTS is empty"),
    ):
        trainer.cfg.defrost()
        trainer.cfg.MODEL.WEIGHTS, trainer.cfg.MODEL.WEIGHTS_CLASSES = weights, known
        with pytest.raises(CheckpointError, match=words):
            trainer.resume_or_load(resume=False)


@pytest.mark.parametrize("value", ["cat", [1, 2], None, [["cat"]]])
def test_it_is_a_list_of_names(value, tiny_cfg):
    cfg = tiny_cfg()
    cfg.MODEL.WEIGHTS_CLASSES = value
    with pytest.raises(ConfigError, match="WEIGHTS_CLASSES is .*; it must be a list of class name"):
        check_config(cfg)


def test_a_teacher_is_the_same_whatever_it_began_with(tiny_cfg):
    cfg = tiny_cfg()
    before = own_settings(cfg)
    cfg.MODEL.WEIGHTS_CLASSES = KNOWN
    assert own_settings(cfg) == before
