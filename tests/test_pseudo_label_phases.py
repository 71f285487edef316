"""Trainings with pseudo labels, end to end on a few images: all phases, resumed between and inside
of them, baselines, two processes, mistakes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from pseudo_label_runs import drive, fill_workplace


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return fill_workplace(tmp_path_factory.mktemp("phases"))


def student(workplace, folder):
    path = workplace / folder / "model_student.pth"
    return torch.load(path, weights_only=True)["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(workplace):
    """A run of all phases without a stop, and the same command once more."""
    results, printed = drive(
        workplace, "whole", "OUTPUT_DIR whole", "--resume OUTPUT_DIR whole",
        "--eval-only --resume OUTPUT_DIR whole",
    )  # fmt: skip
    assert results == [{"keys": []}, {"keys": []}, {"keys": ["bbox"]}], printed
    return printed


def test_all_phases(whole, workplace):
    labels = json.loads((workplace / "whole/labels/export/pseudo.json").read_text())
    assert len(labels["images"]) > 2 and len(labels["annotations"]) > 2
    names = {Path(x["file_name"]).parts[0] for x in labels["images"]}
    assert names <= {"train", "unlabeled"}  # those of few_val are tested with
    assert labels["info"]["pseudo"]["teachers"][0]["licence"] == "CC0"
    assert (workplace / "whole/labels/sheet/sheet.html").exists()
    b, c = (student(workplace, f"whole/phase_{x}") for x in "bc")
    assert not equal(b, c)
    config = yaml.safe_load((workplace / "whole/phase_c/config.yaml").read_text())
    assert config["SOLVER"]["MAX_ITER"] == 2 and config["DATASETS"]["TRAIN"] == ["few_train"]
    assert config["MODEL"]["WEIGHTS"] == "whole/phase_b/model_final.pth"


def test_what_is_finished_is_passed_over(whole):
    for phase in "bc":
        assert f"Finished before: whole/phase_{phase}" in whole
    # each phase writes its lines once: those of C are not said twice
    assert whole.count("Exported the student to") == 2
    assert whole.count("iter: 1 ") <= 2


def test_stopped_between_and_inside_of_phases(whole, workplace):
    """As if the run had been killed after phase B, and, in another folder, in phase B."""
    results, printed = drive(
        workplace,
        "between",
        "OUTPUT_DIR between PSEUDO_LABEL.PHASES ['A','B']",
        "--resume OUTPUT_DIR between",
    )
    assert [*results[0], *results[1]] == ["keys", "keys"], printed
    assert equal(student(workplace, "between/phase_c"), student(workplace, "whole/phase_c"))
    # phase B was trained once more, and the run was stopped before phase C began
    b = workplace / "between/phase_b"
    (b / "model_final.pth").write_bytes((b / "model_0000000.pth").read_bytes())
    results, printed = drive(workplace, "again", "--resume OUTPUT_DIR between")
    assert "Finished before: between/phase_b" in printed and results == [{"keys": []}], printed
    assert not equal(student(workplace, "between/phase_c"), student(workplace, "whole/phase_c"))
    inside = workplace / "inside" / "phase_b"
    inside.mkdir(parents=True)
    for name in ("model_0000000.pth", "phase.json"):
        (inside / name).write_bytes((workplace / "whole/phase_b" / name).read_bytes())
    marker = json.loads((inside / "phase.json").read_text())
    (inside / "phase.json").write_text(json.dumps(marker | {"finished": False}))
    (inside / "last_checkpoint").write_text("model_0000000.pth")
    results, printed = drive(
        workplace, "inside", "--resume OUTPUT_DIR inside PSEUDO_LABEL.LABELS_DIR whole/labels"
    )
    assert results == [{"keys": []}], printed
    assert "continuing at iteration 1 of 3" in printed
    for phase in "bc":
        folder = f"phase_{phase}"
        assert equal(student(workplace, f"inside/{folder}"), student(workplace, f"whole/{folder}"))


def test_baselines_and_mistakes(whole, workplace):
    shared = "PSEUDO_LABEL.LABELS_DIR whole/labels"
    results, printed = drive(
        workplace,
        "others",
        f"OUTPUT_DIR others {shared} PSEUDO_LABEL.BASELINE labels",
        f"OUTPUT_DIR others {shared} PSEUDO_LABEL.BASELINE joint",
        "--resume OUTPUT_DIR whole PSEUDO_LABEL.MERGE.THRESHOLD 0.021",
        "OUTPUT_DIR x PSEUDO_LABEL.UNLABELED ['few_val']",
        "OUTPUT_DIR x PSEUDO_LABEL.LABELED ['few_trian']",
        "OUTPUT_DIR x MODEL.GFL.NUM_CLASSES 5",
        "OUTPUT_DIR nothing PSEUDO_LABEL.MERGE.THRESHOLD 0.99 "
        "PSEUDO_LABEL.FILTER.EMPTY_IMAGES drop",
    )
    assert [x.get("exit") for x in results] == [None, None, 2, 2, 2, 2, 2], printed
    labels = json.loads((workplace / "whole/labels/merge.json").read_text())
    assert labels["settings"]["threshold"] == 0.02  # refused before they are made anew
    for kind in ("labels", "joint"):
        config = yaml.safe_load((workplace / f"others/baseline_{kind}/config.yaml").read_text())
        assert config["SOLVER"]["MAX_ITER"] == 5
        assert (workplace / f"others/baseline_{kind}/model_student.pth").exists()
    view = json.loads((workplace / "others/baseline_joint/labels.json").read_text())
    assert view["others"] and view["datasets"] == ["few_train"]
    for words in (
        "whole/phase_b was trained on other pseudo labels than those of now",
        "images are in the test set 'few_val'",
        "PSEUDO_LABEL.LABELED names the data set 'few_trian', which is not registered; did you",
        "The teachers have 6 classes (circle, ring, square, triangle, star, cross), but "
        "MODEL.GFL.NUM_CLASSES is 5",
        "nothing/labels/export has labels of no image: lower the thresholds",
    ):
        assert words in printed


def test_two_processes_share_the_labelling(whole, workplace):
    results, printed = drive(
        workplace,
        "two",
        "--num-gpus 2 OUTPUT_DIR two SOLVER.IMS_PER_BATCH 4 PSEUDO_LABEL.PHASES ['A','B']",
    )
    assert results == [{"keys": []}], printed
    exported = [workplace / f"{run}/labels/export/pseudo.json" for run in ("whole", "two")]
    boxes = [json.loads(path.read_text())["annotations"] for path in exported]
    assert boxes[0] == boxes[1]
    assert (workplace / "two/phase_b/model_student.pth").exists()
