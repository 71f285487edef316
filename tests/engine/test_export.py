"""The exported student, in Detectron2 without kd_d2."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from stock_detectron2 import detect_in_stock_detectron2

from kd_d2.engine.export import check_student_state, export_student, is_stock_student


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN", "MaskRCNN"])
def test_stock_detectron2_gives_identical_outputs(
    arch, tiny_cfg, lgd_cfg, build, random_batch, tmp_path
):
    cfg = lgd_cfg(arch)
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = cfg.MODEL.MASK_ON
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    model = build(cfg).eval()
    export_student(model, cfg, str(tmp_path))
    inputs = [{k: x[k] for k in ("image", "height", "width")} for x in random_batch()]
    with torch.no_grad():
        expected = model(inputs)
    outputs = detect_in_stock_detectron2(tmp_path, inputs)
    assert sum(len(o["scores"]) for o in outputs) > 0
    for ours, theirs in zip(expected, outputs, strict=True):
        fields = ours["instances"].get_fields()
        assert fields.keys() == theirs.keys()
        for name, value in fields.items():
            assert torch.equal(getattr(value, "tensor", value), theirs[name]), name


def test_files_are_plain(lgd_cfg, build, tmp_path):
    cfg = lgd_cfg()
    model = build(cfg)
    weights, config = export_student(model, cfg, str(tmp_path))
    data = torch.load(weights, weights_only=True)
    assert data["__author__"] == "kd_d2"
    assert set(data["model"]) == set(model.student.state_dict())
    keys = yaml.safe_load(Path(config).read_text())
    assert keys["MODEL"]["WEIGHTS"] == weights
    assert keys["MODEL"]["META_ARCHITECTURE"] == "RetinaNet"
    assert "KD" not in keys["MODEL"] and "OPTIMIZER" not in keys["SOLVER"]
    assert "DTYPE" not in keys["SOLVER"]["AMP"]
    stock = get_cfg()
    stock.merge_from_file(config, allow_unsafe=False)
    assert stock.MODEL.FPN.OUT_CHANNELS == cfg.MODEL.FPN.OUT_CHANNELS


def test_a_state_dict_does_as_well(lgd_cfg, build, tmp_path):
    cfg = lgd_cfg()
    model = build(cfg)
    for folder, source in (("a", model), ("b", model.state_dict()), ("c", model.student)):
        export_student(source, cfg, str(tmp_path / folder))
    first, *others = (
        torch.load(tmp_path / f / "model_student.pth", weights_only=True)["model"] for f in "abc"
    )
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[k], other[k]) for k in first)


def test_students_with_our_parts_keep_their_keys(lgd_cfg, build, tmp_path):
    from kd_d2 import get_kd_cfg

    cfg = lgd_cfg("FCOS")
    model = build(cfg)
    _, config = export_student(model.student, cfg, str(tmp_path))
    again = get_kd_cfg()
    again.merge_from_file(config, allow_unsafe=False)
    assert again.MODEL.META_ARCHITECTURE == "FCOS"
    assert again.MODEL.FCOS.NUM_CLASSES == cfg.MODEL.FCOS.NUM_CLASSES
    assert again.MODEL.KD.STUDENT == "" and not again.MODEL.KD.HEADS
    build(again).load_state_dict(model.student.state_dict())
    assert not is_stock_student(again)


@pytest.mark.parametrize(
    "arch, stock",
    [
        ("RetinaNet", True),
        ("FasterRCNN", True),
        ("MaskRCNN", True),
        ("CascadeRCNN", True),
        ("FCOS", False),
        ("ATSS", False),
    ],
)
def test_which_students_are_stock(arch, stock, tiny_cfg):
    cfg = tiny_cfg(arch)
    assert is_stock_student(cfg) == stock


def test_shared_storage_is_not_saved_with_a_view(tmp_path, tiny_cfg):
    big = torch.zeros(1_000_000)
    weights, _ = export_student({"w": big[:2]}, tiny_cfg(), str(tmp_path))
    assert (tmp_path / "model_student.pth").stat().st_size < 10_000
    assert torch.load(weights, weights_only=True)["model"]["w"].shape == (2,)


def test_command_line(lgd_cfg, build, tmp_path, monkeypatch, capsys):
    """tools/export_student.py does from files what the end of training does."""
    cfg = lgd_cfg()
    model = build(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict(), "iteration": 5}, tmp_path / "model_final.pth")
    script = Path(__file__).resolve().parents[2] / "tools" / "export_student.py"
    out = tmp_path / "out"
    arguments = ["--config-file", tmp_path / "config.yaml"]
    arguments += ["--weights", tmp_path / "model_final.pth", "--output", out]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.split() == [
        str(out / "model_student.pth"),
        str(out / "student.yaml"),
    ]
    state = torch.load(out / "model_student.pth", weights_only=True)["model"]
    assert set(state) == set(model.student.state_dict())


@pytest.mark.parametrize("other", ["FCOS", "backbone"])
def test_weights_of_another_model_are_not_exported(other, lgd_cfg, tiny_cfg, build):
    cfg = lgd_cfg()
    check_student_state(build(cfg).state_dict(), cfg)
    if other == "FCOS":
        state = build(tiny_cfg("FCOS")).state_dict()
    else:
        state = {k: v for k, v in build(tiny_cfg()).state_dict().items() if "backbone" in k}
    with pytest.raises(ValueError, match="not the weights of this config.*head"):
        check_student_state(state, cfg)
