"""A frozen teacher is filled completely or refused."""

import pytest
import torch

from kd_d2.checkpoint import CheckpointError, load_detector_weights


@pytest.fixture
def detector(tiny_cfg, build):
    return build(tiny_cfg())


def save(state, path):
    torch.save({"model": state}, path)
    return str(path)


def test_complete_weights_are_loaded_bit_by_bit(detector, tiny_cfg, build, tmp_path):
    source = build(tiny_cfg())
    report = load_detector_weights(detector, save(source.state_dict(), tmp_path / "t.pth"))
    assert report.complete and report.loaded == report.total == len(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(detector.state_dict()[name], value), name


def test_the_student_of_a_distillation_checkpoint_can_teach(detector, lgd_cfg, build, tmp_path):
    distiller = build(lgd_cfg())
    report = load_detector_weights(detector, save(distiller.state_dict(), tmp_path / "d.pth"))
    assert report.complete
    assert torch.equal(detector.head.cls_score.weight, distiller.student.head.cls_score.weight)


def test_constants_of_old_checkpoints_are_no_surprise(detector, tmp_path):
    state = {k: torch.zeros_like(v) for k, v in detector.state_dict().items()}
    state["pixel_mean"] = torch.zeros(3)
    state["anchor_generator.cell_anchors.0"] = torch.zeros(9, 4)
    assert load_detector_weights(detector, save(state, tmp_path / "old.pth")).complete


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("head.cls_score.weight"), r"1 missing \(head.cls_score.weight\)"),
        (lambda s: s.pop("backbone.bottom_up.stem.conv1.norm.running_mean"), "1 missing"),
        (lambda s: s.update({"mask_head.weight": torch.ones(1)}), r"1 unexpected \(mask_head"),
        (lambda s: s.update({"head.cls_score.bias": torch.ones(7)}), r"1 wrong shape .*\(7,\) for"),
    ],
)
def test_anything_less_than_everything_is_refused(detector, tmp_path, change, words):
    state = dict(detector.state_dict())
    change(state)
    path = save(state, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=words) as error:
        load_detector_weights(detector, path)
    assert "MODEL.KD.TEACHER.ALLOW_PARTIAL_WEIGHTS" in str(error.value)
    assert not load_detector_weights(detector, path, allow_partial=True).complete


def test_nothing_fitting_is_refused_even_if_partial_is_allowed(detector, tmp_path):
    path = save({"other": torch.ones(1)}, tmp_path / "o.pth")
    with pytest.raises(CheckpointError, match="No weight"):
        load_detector_weights(detector, path, allow_partial=True)


def test_no_path_names_the_key(detector):
    with pytest.raises(CheckpointError, match="MODEL.KD.TEACHER.WEIGHTS"):
        load_detector_weights(detector, "")
