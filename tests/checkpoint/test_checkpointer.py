"""Which weights go where, atomic saving, and falling back to a whole checkpoint."""

import os
import pickle
from collections import OrderedDict
from enum import IntEnum

import numpy as np
import pytest
import torch
from torch import nn

from kd_d2.checkpoint import CheckpointError, KDCheckpointer, student_state


class Detector(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, classes)
        self.norm = nn.BatchNorm2d(4)


class Distiller(nn.Module):
    def __init__(self, classes=2, teacher=True):
        super().__init__()
        self.student = Detector(classes)
        self.teacher = nn.Linear(3, 3) if teacher else None
        self.heads = nn.ModuleDict({"Head": nn.Linear(2, 2)})


def filled(model, value):
    """Fills all weights of a model with a number."""
    with torch.no_grad():
        for p in model.state_dict().values():
            p.fill_(value)
    return model


def values(module):
    return {float(v.float().mean()) for v in module.state_dict().values()}


def save(model, path):
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def load(model, path):
    checkpointer = KDCheckpointer(model)
    checkpointer.load(path)
    return checkpointer.loaded_parts


def test_distillation_checkpoint_into_distiller(tmp_path):
    model = filled(Distiller(), 0)
    parts = load(model, save(filled(Distiller(), 1), tmp_path / "m.pth"))
    assert values(model) == {1.0}
    assert parts == {"student": (6, 6), "teacher": (2, 2), "heads": (2, 2)}


def test_plain_detector_into_distiller(tmp_path):
    model = filled(Distiller(), 0)
    parts = load(model, save(filled(Detector(), 1), tmp_path / "m.pth"))
    assert values(model.student) == {1.0}
    assert values(model.teacher) == values(model.heads) == {0.0}
    assert parts == {"student": (6, 6), "teacher": (0, 2), "heads": (0, 2)}


def test_distillation_checkpoint_into_plain_detector(tmp_path):
    model = filled(Detector(), 0)
    parts = load(model, save(filled(Distiller(), 1), tmp_path / "m.pth"))
    assert values(model) == {1.0}
    assert parts == {"model": (6, 6)}


def test_plain_into_plain_and_module_prefix(tmp_path):
    model = filled(Detector(), 0)
    load(model, save(filled(Detector(), 1), tmp_path / "m.pth"))
    assert values(model) == {1.0}
    state = {f"module.{k}": v for k, v in filled(Distiller(), 2).state_dict().items()}
    torch.save({"model": state}, tmp_path / "ddp.pth")
    model = filled(Distiller(), 0)
    load(model, str(tmp_path / "ddp.pth"))
    assert values(model) == {2.0}


@pytest.mark.parametrize("into", [Distiller, Detector])
def test_backbone_by_matching_heuristics(tmp_path, into):
    """As the ImageNet files of Detectron2's zoo: names without their prefix, arrays, a pickle."""
    stem = {"stem.weight": np.ones((4, 3, 3, 3), np.float32), "stem.bias": np.ones(4, np.float32)}
    data = {"model": {**stem, "fc.weight": np.ones((9, 4))}, "__author__": "torchvision"}
    with open(tmp_path / "R.pkl", "wb") as f:
        pickle.dump({**data, "matching_heuristics": True}, f)
    model = filled(into(), 0)
    parts = load(model, str(tmp_path / "R.pkl"))
    detector = getattr(model, "student", model)
    assert values(detector.backbone) == {1.0}
    assert values(detector.head) == {0.0}
    if into is Distiller:
        assert parts["student"] == (2, 6)
        assert values(model.teacher) == values(model.heads) == {0.0}


def test_heuristics_never_reach_teacher_or_heads(tmp_path):
    """'weight' is a suffix of everything; only the student may match by suffix."""
    data = {"model": {"Head.bias": np.ones(2, np.float32), "head.bias": np.ones(2, np.float32)}}
    with open(tmp_path / "R.pkl", "wb") as f:
        pickle.dump({**data, "__author__": "x", "matching_heuristics": True}, f)
    model = filled(Distiller(), 0)
    load(model, str(tmp_path / "R.pkl"))
    assert model.student.head.bias.tolist() == [1, 1]
    assert values(model.heads) == {0.0}


def test_other_shapes_are_skipped_and_counted(tmp_path):
    model = filled(Distiller(classes=5), 0)
    parts = load(model, save(filled(Detector(classes=2), 1), tmp_path / "m.pth"))
    assert parts["student"] == (4, 6)
    assert values(model.student.head) == {0.0}


def test_nothing_matched_is_an_error(tmp_path):
    path = save(nn.Linear(2, 2), tmp_path / "other.pth")
    for model in (Detector(), Distiller()):
        with pytest.raises(CheckpointError, match="Nothing in .*other.pth' fits"):
            load(model, path)


def test_it_says_what_went_where(tmp_path, caplog):
    caplog.set_level("INFO", "kd_d2")
    load(Distiller(), save(Detector(), tmp_path / "m.pth"))
    line = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("Loaded"))
    assert "6 of 6 parameters of the student" in line
    assert "0 of 2 parameters of the teacher" in line


def test_module_versions_survive_the_change_of_names(tmp_path):
    """Modules read their format version from the state dict's metadata."""
    state = student_state(Distiller().state_dict())
    assert state._metadata["norm"]["version"] == 2
    assert state._metadata[""] is not None
    assert set(state) == set(Detector().state_dict())


class Counter:
    """Something checkpointable."""

    def __init__(self, n=0, state=None):
        self.n = n
        self.extra = state or {}

    def state_dict(self):
        return {"n": self.n, **self.extra}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_files_hold_tensors_and_plain_python_only(tmp_path):
    class Level(IntEnum):
        ONE = 1

    state = {
        "float": np.float64(0.5),
        "array": np.ones(2),
        "tuple": (np.int64(1), [np.bool_(True)]),
        "ordered": OrderedDict(a=np.float32(2)),
        "enum": Level.ONE,
        "none": None,
    }
    checkpointer = KDCheckpointer(Detector(), str(tmp_path), trainer=Counter(3, state))
    checkpointer.save("model_0000003", iteration=np.int64(3))
    data = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    assert data["iteration"] == 3 and data["trainer"]["n"] == 3
    assert data["trainer"]["float"] == 0.5 and type(data["trainer"]["float"]) is float
    assert data["trainer"]["tuple"] == (1, [True])
    assert data["trainer"]["array"].tolist() == [1, 1]
    assert type(data["trainer"]["enum"]) is int


def test_other_objects_are_refused_by_name(tmp_path):
    checkpointer = KDCheckpointer(Detector(), str(tmp_path), trainer=Counter(0, {"lock": object()}))
    with pytest.raises(TypeError, match="trainer.lock"):
        checkpointer.save("model_final")
    assert os.listdir(tmp_path) == []


def saved_run(tmp_path, times=3):
    """Checkpoints 0, 1, 2 of a run, whose weights are filled with these numbers."""
    for n in range(times):
        model = filled(Distiller(), n)
        KDCheckpointer(model, str(tmp_path), trainer=Counter(n)).save(f"model_{n:07d}")
        os.utime(tmp_path / f"model_{n:07d}.pth", (n, n))
    return tmp_path


def resume(tmp_path, weights=""):
    model, counter = filled(Distiller(), -1), Counter(-1)
    checkpointer = KDCheckpointer(model, str(tmp_path), trainer=counter)
    checkpointer.resume_or_load(weights, resume=True)
    return model, counter, checkpointer.resumed_from


def test_resume_takes_the_last_checkpoint(tmp_path):
    model, counter, file = resume(saved_run(tmp_path))
    assert values(model) == {2.0} and counter.n == 2
    assert file.endswith("model_0000002.pth")


@pytest.mark.parametrize(
    "other, words",
    [
        (Distiller(classes=3), r"2 weights have another shape \(student.head.weight \(2, 4\) for"),
        (Distiller(teacher=False), r"2 weights in the file have no place in the model \(teacher.w"),
        (Detector(classes=3), r"2 weights have another shape \(head.weight \(2, 4\) for \(3, 4\)"),
    ],
)
def test_a_run_of_another_model_is_not_resumed(tmp_path, other, words):
    saved_run(tmp_path)
    counter = Counter(-1)
    checkpointer = KDCheckpointer(filled(other, -1), str(tmp_path), trainer=counter)
    with pytest.raises(ValueError, match=f"model_0000002.pth' .*of another model: {words}"):
        checkpointer.resume_or_load("", resume=True)
    assert values(other) == {-1.0} and counter.n == -1
    checkpointer.load(str(tmp_path / "model_0000002.pth"), checkpointables=[])  # what fits, as ever


def test_parts_that_come_or_go_are_announced(tmp_path, caplog):
    saved_run(tmp_path)
    checkpointer = KDCheckpointer(Distiller(), str(tmp_path), newcomer=Counter(-1))
    with caplog.at_level("WARNING"):
        checkpointer.resume_or_load("", resume=True)
    assert "without a newcomer: it begins now" in caplog.text
    assert "with a trainer: it ends here" in caplog.text


def test_resume_falls_back_from_a_broken_file(tmp_path, caplog):
    saved_run(tmp_path)
    last = tmp_path / "model_0000002.pth"
    last.write_bytes(last.read_bytes()[:3000])
    os.utime(last, (9, 9))
    model, counter, file = resume(tmp_path)
    assert values(model) == {1.0} and counter.n == 1
    assert file.endswith("model_0000001.pth")
    assert "model_0000002.pth" in caplog.text and "Falling back" in caplog.text


def test_resume_survives_a_lost_tag_and_a_tag_without_file(tmp_path):
    saved_run(tmp_path)
    (tmp_path / "last_checkpoint").unlink()
    assert resume(tmp_path)[1].n == 2
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    assert resume(tmp_path)[1].n == 2


def test_resume_with_only_broken_files_is_an_error(tmp_path):
    saved_run(tmp_path, times=1)
    (tmp_path / "model_0000000.pth").write_bytes(b"PK\x03\x04 gone")
    with pytest.raises(CheckpointError, match="No checkpoint in .* can be resumed"):
        resume(tmp_path)


def test_exported_student_is_nothing_to_resume_from(tmp_path):
    save(filled(Detector(), 5), tmp_path / "model_student.pth")
    model, counter, file = resume(tmp_path, weights=str(tmp_path / "model_student.pth"))
    assert file is None and counter.n == -1
    assert values(model.student) == {5.0}


def test_a_failed_save_keeps_the_previous_checkpoint_and_its_tag(tmp_path, monkeypatch):
    saved_run(tmp_path, times=1)
    checkpointer = KDCheckpointer(filled(Distiller(), 9), str(tmp_path))

    def full_disk(data, f):
        f.write(b"some")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpointer.save("model_0000000")
    monkeypatch.undo()
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert values(resume(tmp_path)[0]) == {0.0}
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000000.pth"]
