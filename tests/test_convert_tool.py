"""tools/convert_checkpoint.py: files in, files out, mistakes in a sentence."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from official_lgd import official_file, official_state, perturb
from stock_detectron2 import detect_in_stock_detectron2

from kd_d2.checkpoint import KDCheckpointer
from kd_d2.engine import load_config

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "convert_checkpoint.py"


class Case:
    """A config on disk, an official checkpoint of it, and the model both were made from."""

    def __init__(self, cfg, model, folder):
        self.cfg, self.model, self.folder = cfg, perturb(model).eval(), folder
        self.config = folder / "config.yaml"
        self.config.write_text(cfg.dump())
        state = official_state(model, old_buffers=True)
        self.file = official_file(folder / "official.pth", state)
        self.out = folder / "new" / "folder" / "model.pth"

    def arguments(self, *more):
        return ["--from", "lgd", self.file, self.out, "--config-file", self.config, *more]


@pytest.fixture
def case(lgd_cfg, build, tmp_path):
    def case(arch="RetinaNet"):
        cfg = lgd_cfg(arch)
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.KD.EVAL_TEACHER = True
        return Case(cfg, build(cfg), tmp_path)

    return case


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs the tool with arguments; returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(tool, capsys):
    """Runs the tool, which must end with code 2; returns its sentence."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            tool(*arguments)
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


def test_a_distillation_checkpoint(case, tool, build):
    c = case()
    printed = tool(*c.arguments())
    own = c.model.state_dict()
    data = torch.load(c.out, weights_only=True)
    assert data.keys() == {"model", "__author__"} and data["model"].keys() == own.keys()
    assert all(torch.equal(data["model"][k], own[k]) for k in own)
    assert os.listdir(c.out.parent) == ["model.pth"]

    torch.manual_seed(1)
    model = build(c.cfg)
    checkpointer = KDCheckpointer(model)
    checkpointer.load(str(c.out))
    for part, (filled, total) in checkpointer.loaded_parts.items():
        assert filled == total, part
    assert set(checkpointer.loaded_parts) == {"student", "teacher", "heads"}

    lines = printed.splitlines()
    size = len(official_state(c.model, old_buffers=True))
    assert f"{size} weights in the file: {len(own)} used (" in lines[1]
    assert "  16 dropped: the feature pyramid a second time, equal to the first" in lines
    assert "  7 dropped: constants that the config determines, and they agree" in lines
    assert "iteration: 179999" in lines
    assert any(
        line.startswith("ignored: stu_optimizer, tea_optimizer, stu_scheduler, tea_scheduler")
        for line in lines
    )
    command = lines[-1].split()
    assert command[:2] == ["python", "train_net.py"] and "--eval-only" in command
    again = load_config(str(c.config), command[command.index("--eval-only") + 1 :])
    assert str(c.out) == again.MODEL.WEIGHTS and again.MODEL.KD.EVAL_TEACHER is False


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN", "FCOS"])
def test_the_student_alone(arch, case, tool):
    c = case(arch)
    printed = tool(*c.arguments("--student-only"))
    assert "the student alone" in printed and "dropped: teacher and adapter" in printed
    yaml = c.out.parent / "student.yaml"
    assert f"--config-file {yaml} --eval-only" in printed.splitlines()[-1]
    assert sorted(os.listdir(c.out.parent)) == ["model.pth", "student.yaml"]
    own = c.model.student.state_dict()
    if arch == "FCOS":
        cfg = load_config(str(yaml))
        assert cfg.MODEL.META_ARCHITECTURE == "FCOS"
    else:
        cfg = get_cfg()
        cfg.merge_from_file(str(yaml))
    assert str(c.out) == cfg.MODEL.WEIGHTS
    torch.manual_seed(1)
    student = build_model(cfg)
    assert student.state_dict().keys() == own.keys()
    DetectionCheckpointer(student).load(cfg.MODEL.WEIGHTS)
    assert all(torch.equal(v, own[k]) for k, v in student.state_dict().items())


def test_stock_detectron2_detects_the_same(case, tool, random_batch, tmp_path):
    """In a process that has never heard of kd_d2."""
    c = case()
    c.out = tmp_path / "model.pth"
    tool(*c.arguments("--student-only"))
    inputs = [{k: x[k] for k in ("image", "height", "width")} for x in random_batch()]
    with torch.no_grad():
        expected = [o["instances"].pred_boxes.tensor for o in c.model(inputs)]
    outputs = [o["pred_boxes"] for o in detect_in_stock_detectron2(tmp_path, inputs)]
    assert sum(map(len, outputs)) > 0
    assert all(torch.equal(x, y) for x, y in zip(outputs, expected, strict=True))


def test_overrides_and_a_plain_config(case, tool, refused, tiny_cfg, tmp_path):
    c = case()
    words = refused(*c.arguments("MODEL.RETINANET.NUM_CLASSES", "5"))
    assert "MODEL.RETINANET.NUM_CLASSES (3 in the file, 5 in the config)" in words
    assert not c.out.parent.exists()
    c.config.write_text(c.config.read_text().replace("NUM_CLASSES: 3", "NUM_CLASSES: 5"))
    printed = tool(*c.arguments("MODEL.RETINANET.NUM_CLASSES", "3"))
    assert "MODEL.RETINANET.NUM_CLASSES 3" in printed.splitlines()[-1]

    c.config.write_text(tiny_cfg().dump())
    c.out = tmp_path / "student.pth"
    assert "of a plain RetinaNet" in refused(*c.arguments())
    tool(*c.arguments("--student-only"))
    assert (tmp_path / "student.yaml").exists()


def test_nothing_is_overwritten_unasked(case, tool, refused, tmp_path):
    c = case()
    c.out = tmp_path / "model.pth"
    c.out.write_text("precious")
    assert f"'{c.out}' exists" in refused(*c.arguments()) and c.out.read_text() == "precious"
    assert "--overwrite" in refused(*c.arguments("--student-only"))
    tool(*c.arguments("--overwrite"))
    assert c.out.stat().st_size > 10_000

    (tmp_path / "student.yaml").write_text("precious")
    c.out = tmp_path / "other.pth"
    assert "student.yaml' exists" in refused(*c.arguments("--student-only"))
    assert not c.out.exists()
    c.out = c.file
    assert "same file" in refused(*c.arguments("--overwrite"))
    for c.out in (tmp_path, tmp_path / "model.pkl", "s3://bucket/model.pth"):
        assert "a local file name ending in .pth" in refused(*c.arguments())


def test_a_write_that_fails_leaves_what_was_there(case, refused, tmp_path, monkeypatch):
    c = case()
    c.out = tmp_path / "model.pth"
    c.out.write_text("precious")

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in refused(*c.arguments("--overwrite"))
    assert c.out.read_text() == "precious" and not list(tmp_path.glob(".*"))


class Malicious:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return (os.system, (f"touch '{self.witness}'",))


def test_nothing_in_the_file_is_run(case, refused, tmp_path):
    c = case()
    state = official_state(c.model)
    witness = tmp_path / "witness"
    c.file = official_file(tmp_path / "evil.pth", state, stu_scheduler=Malicious(witness))
    words = refused(*c.arguments())
    assert "can run code" in words and "system" in words
    assert not witness.exists() and not c.out.exists()


def test_names_of_files_and_formats(case, refused, tmp_path):
    c = case()
    assert "Unknown checkpoint format 'lgdd': did you mean 'lgd'?" in refused(
        "--from", "lgdd", *c.arguments()[2:]
    )
    c.file = tmp_path / "no.pth"
    assert "no.pth' not found" in refused(*c.arguments())
    c.file = tmp_path / "stock.pth"
    torch.save({"model": c.model.student.state_dict()}, c.file)
    assert "plain detector" in refused(*c.arguments())
    torch.save({"model": c.model.state_dict()}, c.file)
    assert "kd_d2 already" in refused(*c.arguments())
    c.config = tmp_path / "no.yaml"
    assert "no.yaml' does not exist" in refused(*c.arguments())
