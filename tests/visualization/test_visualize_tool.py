"""tools/visualize_distillation.py from the command line to the page."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes import split_folder
from kd_d2.data.shapes_render import CLASSES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def main():
    path = ROOT / "tools" / "visualize_distillation.py"
    spec = importlib.util.spec_from_file_location("visualize_distillation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with images/ and annotations.json of four images."""
    root = tmp_path_factory.mktemp("datasets")
    sizes = {"train": 2, "val": 4, "unlabeled": 2}
    register_shapes(root, sizes, prefix="seen_shapes")
    from detectron2.data import DatasetCatalog

    for split in sizes:
        DatasetCatalog.get(f"seen_shapes_{split}")
    return split_folder(root, "val", "seen_shapes")


@pytest.fixture
def run(data, lgd_cfg, build, tmp_path, main):
    """Runs the tool on a tiny LGD model; returns its exit code."""
    cfg = lgd_cfg()
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TEST = ("seen_shapes_val",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build(cfg).state_dict()}, tmp_path / "model_final.pth")

    def run(*args, config="config.yaml"):
        try:
            return main(
                ["--config-file", str(tmp_path / config)]
                + ["--weights", str(tmp_path / "model_final.pth")]
                + ["--output", str(tmp_path / "out" / "pictures"), *map(str, args)]
            )
        except SystemExit as error:
            return error.code

    return run


@pytest.fixture
def page(tmp_path):
    """Reads the page that was written."""
    return lambda: (tmp_path / "out" / "pictures" / "index.html").read_text()


def test_the_configs_own_data_set(run, page, tmp_path):
    assert run("--num", 2, "--threshold", 0) == 0
    text = page()
    assert "val_000000.png" in text and "val_000003.png" in text and "val_000001" not in text
    assert "Attention" in text and "principal components" in text
    assert 'class="note"' not in text
    pictures = sorted((tmp_path / "out" / "pictures" / "pictures").iterdir())
    assert [p.name for p in pictures] == ["001_val_000000.png", "002_val_000003.png"]
    sheet = Image.open(tmp_path / "out" / "pictures" / "contact_sheet.png")
    assert sheet.size[0] == max(Image.open(p).size[0] for p in pictures)


def test_another_data_set_another_style_and_one_level(run, page):
    assert run("--dataset", "seen_shapes_train", "--features", "energy") == 0
    assert "train_000001.png" in page() and "root mean square" in page()
    assert run("--dataset", "seen_shapes_val", "--num", 1, "--attention-level", "p4") == 0
    assert run("--num", 1, "--attention-level", "p9") == 2


def test_images_without_labels_show_the_student_alone(run, page, data, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    files = sorted((data / "images").iterdir())
    assert run("--images", broken, files[1]) == 0
    text = page()
    assert text.count("reads the labels, and the image has none: only the student is shown") == 1
    assert "Not shown:" in text and "broken.png cannot be read" in text
    assert "Attention" not in text and "<th>teacher</th>" not in text
    assert run("--dataset", "seen_shapes_unlabeled") == 0
    capsys.readouterr()
    assert run("--images", broken) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("Error: None of the images can be used (1 tried). The image")


def test_a_folder_with_labels(run, page, data, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(data / "images", folder)
    labels = data / "annotations.json"
    assert run("--images", folder, "--annotations", labels, "--num", 3) == 0
    assert "ground truth" in page() and "<th>teacher</th>" in page()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--images", "none.png"], "There is no image or folder none.png"),
        (["--dataset", "seen_shapes_vel"], "did you mean seen_shapes_val"),
        (["MODEL.KD.ENABLED", "False"], "has no teacher to show"),
        (["--images", "a", "--dataset", "b"], "exclude each other"),
        (["--annotations", "a.json"], "goes with --images and one folder"),
        (["--device", "foo"], "--device is foo: it must be cpu or cuda"),
        (["--num", "0"], "--num must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(args, message, run, capsys, tmp_path):
    assert run(*args) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_matching_levels_of_chosen_objects(
    data, frozen_cfg, build, tmp_path, main, capsys, monkeypatch
):
    monkeypatch.setattr("tiny_models.NUM_CLASSES", len(CLASSES))
    cfg = frozen_cfg("RetinaNet", "FasterRCNN")
    cfg.MODEL.KD.HEADS = ["SGFI"]
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TEST = ("seen_shapes_val",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build(cfg).state_dict()}, tmp_path / "model_final.pth")
    files = [
        "--config-file",
        str(tmp_path / "config.yaml"),
        "--weights",
        str(tmp_path / "model_final.pth"),
    ]
    out = ["--output", str(tmp_path / "out"), "--num", "1"]
    assert main([*files, *out, "--objects", "1"]) == 0
    assert "Matching levels" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(SystemExit):
        main([*files, *out, "--objects", "0"])
    assert "--objects are numbers from 1" in capsys.readouterr().err
