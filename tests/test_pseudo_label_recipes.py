"""Trainings with pseudo labels, end to end on a few images: labels of some classes only, phases
that are run by themselves, and settings that change between two commands."""

import json
import shutil

import pytest
import torch
import yaml
from pseudo_label_runs import drive, fill_workplace

FIRST = "PSEUDO_LABEL.LABELED ['few_first'] PSEUDO_LABEL.PHASE_C.MISSING drop"
SHARED = "PSEUDO_LABEL.LABELS_DIR whole/labels"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return fill_workplace(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def whole(workplace):
    results, printed = drive(workplace, "whole", "OUTPUT_DIR whole")
    assert results == [{"keys": []}], printed


def config(workplace, phase):
    return yaml.safe_load((workplace / phase / "config.yaml").read_text())


def test_two_data_sets_of_different_classes(whole, workplace):
    """Objects of a class are no background on the images whose labels lack it."""
    both = f"{SHARED} PSEUDO_LABEL.PHASES ['B','C'] PSEUDO_LABEL.LABELED ['few_first','few_rest']"
    results, printed = drive(
        workplace,
        "two",
        f"OUTPUT_DIR pseudo {both}",
        f"OUTPUT_DIR mask {both} PSEUDO_LABEL.PHASE_C.MISSING mask",
        f"OUTPUT_DIR mask {both} PSEUDO_LABEL.PHASE_C.MISSING mask PSEUDO_LABEL.BASELINE joint",
    )
    assert results == 3 * [{"keys": []}], printed
    for name in ("few_first", "few_rest"):
        assert f"6 of the 6 images of '{name}' are in pseudo_labels:" in printed
    for phase, missing in (
        ("pseudo/phase_c", "pseudo"),
        ("mask/phase_c", "mask"),
        ("mask/baseline_joint", "mask"),
    ):
        assert json.loads((workplace / phase / "labels.json").read_text())["missing"] == missing
        weights = config(workplace, phase)["MODEL"]["LABEL_WEIGHTS"]
        assert weights["COVERED"] == (missing == "mask")
        assert weights["IGNORE"] == (phase != "mask/phase_c")


def test_a_student_that_keeps_some_classes(whole, workplace):
    """Pseudo labels are mixed in in its classes, and it is evaluated by the same file."""
    tests = "DATASETS.TEST ('few_val','few_val_first')"
    command = f"OUTPUT_DIR drop {SHARED} {FIRST} {tests} PSEUDO_LABEL.PHASE_C.MIX_PSEUDO 0.5"
    results, printed = drive(
        workplace,
        "drop",
        command,
        f"--eval-only --resume {command}",
        f"--eval-only {command} MODEL.WEIGHTS drop/phase_c/model_student.pth",
        # the labels tell the classes, whether the teachers are at hand or not
        f"--eval-only --resume {command} PSEUDO_LABEL.TEACHERS ['gone=gone.yaml,gone.pth']",
        f"--eval-only --resume {command} PSEUDO_LABEL.PHASES ['A','B'] "
        "DATASETS.TEST ('few_val_first',)",
    )
    assert results == [{"keys": []}, *3 * [{"keys": ["bbox"]}], {"exit": 2}], printed
    assert "DATASETS.TEST ('few_val_first',) has not the classes of the student in its" in printed
    c = config(workplace, "drop/phase_c")
    assert c["MODEL"]["GFL"]["NUM_CLASSES"] == 3 and c["DATALOADER"]["DATASET_SHARES"] == [0.5, 0.5]
    [_, pseudo] = c["DATASETS"]["TRAIN"]
    assert pseudo.startswith("relabeled:") and pseudo.endswith("drop/phase_c/pseudo_labels.json")
    state = torch.load(workplace / "drop/phase_c/model_student.pth", weights_only=True)["model"]
    assert len(state["head.cls_score.bias"]) == 3


def test_without_the_teachers(whole, workplace):
    """Labels that are there need no files of their teachers; without any teacher nothing is run,
    but the config that a phase has left behind runs by itself."""
    alone = "--config-file whole/phase_{0}/config.yaml OUTPUT_DIR alone_{0}"
    teachers = "PSEUDO_LABEL.TEACHERS ['big=gone.yaml,gone.pth'] PSEUDO_LABEL.MERGE.THRESHOLD 0.3"
    results, printed = drive(
        workplace,
        "alone",
        f"OUTPUT_DIR gone {SHARED} PSEUDO_LABEL.PHASES ['B'] {teachers}",
        f"OUTPUT_DIR same {SHARED} PSEUDO_LABEL.PHASES ['B']",
        f"OUTPUT_DIR none {SHARED} PSEUDO_LABEL.PHASES ['B'] PSEUDO_LABEL.TEACHERS []",
        alone.format("b"),
        alone.format("c"),
    )
    assert results == [{"keys": []}, {"keys": []}, {"exit": 2}, {"keys": []}, {"keys": []}], printed
    [warning] = {x.partition("WARNING")[2] for x in printed.splitlines() if "as they are" in x}
    for words in (
        f"config_file was {workplace}/teacher.yaml, and now is gone.yaml",
        f"weights was {workplace}/teacher.pth, and now is gone.pth",
        "their threshold is 0.02, and MERGE.THRESHOLD 0.3",
    ):
        assert words in warning
    assert (
        "TEACHERS is empty, so that PSEUDO_LABEL.LABELS_DIR, LABELED, UNLABELED, PHASES" in printed
    )
    assert not (workplace / "none").exists()
    for phase in "bc":
        own, old = (config(workplace, f"{x}_{phase}") for x in ("alone", "whole/phase"))
        assert own | {"OUTPUT_DIR": ""} == old | {"OUTPUT_DIR": ""}


def test_finished_phases_and_other_settings(whole, workplace):
    """They are not said to be trained with them; what does not change the weights may change."""
    shutil.copytree(workplace / "whole", workplace / "moved")
    command = "--resume OUTPUT_DIR moved"
    records = [workplace / f"moved/phase_{x}/phase.json" for x in "bc"]
    noted = [x.read_text() for x in records]
    results, printed = drive(
        workplace,
        "changed",
        f"{command} SOLVER.BASE_LR 0.003",
        f"{command} SOLVER.MAX_ITER 2",
        f"{command} PSEUDO_LABEL.PHASE_C.LR_FACTOR 0.2",
        f"{command} DATALOADER.NUM_WORKERS 0 SOLVER.CHECKPOINT_PERIOD 2",
    )
    assert results == [*3 * [{"exit": 2}], {"keys": []}], printed
    refused = "moved/phase_{} is finished, and was trained with other settings"
    assert [printed.count(refused.format(x)) for x in "bc"] == [2, 1]
    assert printed.count("Finished before") == 2 and noted == [x.read_text() for x in records]
    # a longer schedule goes on, and C begins anew with its weights
    results, printed = drive(workplace, "longer", f"{command} SOLVER.MAX_ITER 4")
    assert results == [{"keys": []}] and "continuing at iteration 3 of 4" in printed, printed
    assert printed.count("continuing at") == 1
    assert [json.loads(x.read_text())["length"] for x in records] == [4, 2]
