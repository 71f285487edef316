"""Only a whole model is shown."""

import pytest
import torch

from kd_d2.visualization.trained import load_trained


@pytest.fixture
def run(lgd_cfg, build, tmp_path):
    """The files of a tiny LGD run."""
    cfg = lgd_cfg()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    state = build(cfg).state_dict()
    student = {k: v for k, v in state.items() if k.startswith("student.")}
    torch.save({"model": state}, tmp_path / "model_final.pth")
    torch.save({"model": student}, tmp_path / "model_student.pth")
    return tmp_path


def test_a_full_checkpoint_fills_all(run):
    _, model = load_trained(run / "config.yaml", run / "model_final.pth")
    state = torch.load(run / "model_final.pth", weights_only=True)["model"]
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_student_has_no_teacher_to_show(run):
    with pytest.raises(ValueError, match="fills 0 of .* parameters of the teacher"):
        load_trained(run / "config.yaml", run / "model_student.pth")


def test_a_gpu_that_is_not_there(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device is cuda, and torch finds no GPU"):
        load_trained(run / "config.yaml", run / "model_final.pth", "cuda")
