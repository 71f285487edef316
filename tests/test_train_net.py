"""The command line, end to end on a few images: train, resume, evaluate, mistakes, torchrun.

Each interpreter that is started costs seconds, so several commands share one.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]

# Runs train_net's main once per command of a JSON file, with a few images as data set
DRIVER = """
import json, os, sys
import train_net
from detectron2.engine import default_argument_parser
from kd_d2.data.builtin import register_shapes

register_shapes(sys.argv[1], {"train": 6, "val": 3}, prefix="few")
results = []
for command in json.loads(open(sys.argv[2]).read()):
    args = default_argument_parser().parse_args(command)
    try:
        scores = train_net.main(args)
        results.append({"keys": sorted(scores or {})})
    except SystemExit as error:
        results.append({"exit": error.code})
    if os.environ.get("RANK", "0") == "0":
        json.dump(results, open(sys.argv[2] + ".results", "w"))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a driver and three tiny configs: plain, LGD, and PKD without its teacher."""
    folder = tmp_path_factory.mktemp("train_net")
    (folder / "driver.py").write_text(DRIVER)
    base = ROOT / "configs" / "quickstart" / "Base-shapes-retinanet.yaml"
    tiny = {
        "_BASE_": str(base),
        "DATASETS": {"TRAIN": ["few_train"], "TEST": ["few_val"]},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": [1], "CHECKPOINT_PERIOD": 1},
        "TEST": {"EVAL_PERIOD": 0},
        "VERSION": 2,
    }
    lgd = {
        "META_ARCHITECTURE": "LabelGuidedDistiller",
        "KD": {
            "STUDENT": "RetinaNet",
            "TEACHER": {"NAME": "LabelEncoder"},
            "HEADS": ["InstructiveFeatures"],
        },
    }
    pkd = {
        "META_ARCHITECTURE": "FrozenTeacherDistiller",
        "KD": {
            "STUDENT": "RetinaNet",
            "TEACHER": {"NAME": "Frozen", "CONFIG_FILE": "gone.yaml", "WEIGHTS": "gone.pth"},
            "HEADS": ["PKD"],
        },
    }
    for name, model in (("plain", {}), ("lgd", lgd), ("pkd", pkd)):
        text = yaml.safe_dump({**tiny, "MODEL": model, "OUTPUT_DIR": str(folder / name)})
        (folder / f"{name}.yaml").write_text(text)
    part = {"backbone.fpn_lateral3.weight": torch.zeros(64, 64, 1, 1)}
    torch.save({"model": part}, folder / "part.pth")
    return folder


def environment():
    env = {k: v for k, v in os.environ.items() if k != "KD_D2_DEBUG"}
    return {**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def drive(workplace, name, commands, launcher=(sys.executable,)):
    """Runs commands in one interpreter (or group of them); returns their results and output."""
    path = workplace / f"{name}.json"
    path.write_text(json.dumps(commands))
    done = subprocess.run(
        [*launcher, str(workplace / "driver.py"), str(workplace / "data"), str(path)],
        cwd=workplace,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = done.stdout + done.stderr
    assert (workplace / f"{name}.json.results").exists(), output
    results = json.loads((workplace / f"{name}.json.results").read_text())
    assert len(results) == len(commands), output
    return results, output


@pytest.fixture(scope="module")
def trained(workplace):
    """One LGD run, then everything that one does with its product."""
    config = ["--config-file", str(workplace / "lgd.yaml"), "--num-gpus", "0"]
    student = ["--config-file", str(workplace / "lgd" / "student.yaml"), "--num-gpus", "0"]
    frozen = ["--config-file", str(workplace / "pkd.yaml"), "--num-gpus", "0"]
    full = ["MODEL.WEIGHTS", str(workplace / "lgd" / "model_final.pth")]
    exported = ["MODEL.WEIGHTS", str(workplace / "lgd" / "model_student.pth")]
    teacher = ["MODEL.KD.EVAL_TEACHER", "True"]
    commands = {
        "train": [*config, *teacher],
        "resume": [*config, "--resume", "SOLVER.MAX_ITER", "3"],
        "resume with other channels": [*config, "--resume", "MODEL.FPN.OUT_CHANNELS", "32"],
        "full, distillation config": [*config, "--eval-only", *full],
        "full with teacher": [*config, "--eval-only", *full, *teacher],
        "exported, distillation config": [*config, "--eval-only", *exported],
        "exported asked for its teacher": [*config, "--eval-only", *exported, *teacher],
        "exported, its own config": [*student, "--eval-only"],
        "full, student's config": [*student, "--eval-only", *full],
        "full, a config whose teacher is not there": [*frozen, "--eval-only", *full],
        "unknown key": [*config, "SOLVER.BASE_LRR", "1"],
        "wrong weights": [*config, "--eval-only", "MODEL.WEIGHTS", str(workplace / "part.pth")],
        "no weights": [*config, "--eval-only"],
        "nothing to resume": [*config, "--eval-only", "--resume", "OUTPUT_DIR", "empty"],
        "no config": ["--num-gpus", "0"],
        "wrong classes": [*config, "--eval-only", *full, "MODEL.RETINANET.NUM_CLASSES", "4"],
        "one image": [*config, "SOLVER.IMS_PER_BATCH", "1", "OUTPUT_DIR", "one"],
        "wrong batch": [*config, "--num-gpus", "3"],
        "missing weights": [*config, "--eval-only", "MODEL.WEIGHTS", "nowhere.pth"],
        "missing teacher": frozen,
        "unknown data": [*config, "DATASETS.TRAIN", "('few_trian',)"],
        "missing config": ["--config-file", str(workplace / "lgdd.yaml")],
    }
    results, output = drive(workplace, "commands", list(commands.values()))
    return dict(zip(commands, results, strict=True)), output


def test_training_ends_with_its_product(workplace, trained):
    results, output = trained
    assert "exit" not in results["train"], output
    files = {p.name for p in (workplace / "lgd").iterdir()}
    assert {"model_final.pth", "model_student.pth", "student.yaml", "config.yaml"} <= files
    lines = (workplace / "lgd" / "metrics.json").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert any("bbox_teacher/AP" in line and "bbox/AP" in line for line in metrics)
    assert any("loss_distill" in line and "loss_cls.tea" in line for line in metrics)


def test_resume_goes_on(trained):
    results, output = trained
    assert "exit" not in results["resume"]
    assert "continuing at iteration 2 of 3" in output


def test_failed_starts_and_evaluations_leave_the_config_of_the_run(workplace, trained):
    config = yaml.safe_load((workplace / "lgd" / "config.yaml").read_text())
    assert config["MODEL"]["FPN"]["OUT_CHANNELS"] == 64
    assert config["MODEL"]["META_ARCHITECTURE"] == "LabelGuidedDistiller"


@pytest.mark.parametrize(
    "command, tasks",
    [
        ("full, distillation config", ["bbox"]),
        ("full with teacher", ["bbox", "bbox_teacher"]),
        ("exported, distillation config", ["bbox"]),
        ("exported asked for its teacher", ["bbox"]),
        ("exported, its own config", ["bbox"]),
        ("full, student's config", ["bbox"]),
        ("full, a config whose teacher is not there", ["bbox"]),
    ],
)
def test_evaluation_takes_every_kind_of_weights(trained, command, tasks):
    results, output = trained
    assert results[command] == {"keys": tasks}, output


def test_it_says_when_there_is_no_teacher_to_evaluate(trained):
    assert "The weights hold no teacher: evaluating the student alone" in trained[1]


@pytest.mark.parametrize(
    "command, words",
    [
        (
            "resume with other channels",
            "model: 160 weights have another shape (student.backbone.fpn_lat",
        ),
        ("unknown key", "Error: Unknown config key SOLVER.BASE_LRR: did you mean SOLVER.BASE_LR"),
        ("wrong weights", "fills 1 of 102 parameters of the model, and the others would stay"),
        ("no weights", "There is nothing to evaluate"),
        ("nothing to resume", "there is no checkpoint in 'empty'"),
        ("no config", "DATASETS.TRAIN is empty"),
        ("wrong classes", "has 6 classes but MODEL.RETINANET.NUM_CLASSES is 4"),
        ("one image", "Error: SOLVER.IMS_PER_BATCH gives a process one image"),
        ("wrong batch", "which 3 processes cannot share equally"),
        ("missing weights", "Error: Weights 'nowhere.pth' not found"),
        ("missing teacher", "gone.yaml"),
        ("unknown data", "few_trian"),
        ("missing config", "lgd.yaml"),
    ],
)
def test_mistakes_are_one_sentence(trained, command, words):
    results, output = trained
    assert results[command] == {"exit": 2}
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert sum(words in line for line in errors) == 1, output
    assert "Traceback" not in output


def test_torchrun_with_two_processes(workplace):
    # two images a rank: batch norms refuse one image on the level that is one cell large
    overrides = ["OUTPUT_DIR", str(workplace / "ddp"), "SOLVER.IMS_PER_BATCH", "4"]
    config = ["--config-file", str(workplace / "lgd.yaml"), *overrides]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    driver = DRIVER.replace(
        "        scores = train_net.main(args)\n",
        "        train_net.launch(train_net.main, 2, args=(args,))\n        scores = None\n",
    )
    (workplace / "driver.py").write_text(driver)
    try:
        results, output = drive(workplace, "torchrun", [config], [*launcher, "2"])
    finally:
        (workplace / "driver.py").write_text(DRIVER)
    assert results == [{"keys": []}], output
    assert "World size: 2" in output
    assert (workplace / "ddp" / "model_student.pth").exists()


def test_a_mistake_ends_the_command_before_processes_are_started(workplace):
    overrides = ["DATASETS.TRAIN", "('coco_2017_train',)", "DATASETS.TEST", "()"]
    config = ["--config-file", str(workplace / "plain.yaml"), "--num-gpus", "1000", *overrides]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *config],
        cwd=workplace,
        env={**environment(), "DETECTRON2_DATASETS": str(workplace / "nowhere")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: coco_2017_train needs") and "DETECTRON2_DATASETS" in error


@pytest.mark.parametrize("option, hint", [([], " --resume goes on"), (["--eval-only"], "")])
def test_ctrl_c_is_one_sentence(monkeypatch, capsys, option, hint):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.syspath_prepend(ROOT)
    train_net = importlib.import_module("train_net")
    monkeypatch.setattr(sys, "argv", ["train_net.py", *option])
    monkeypatch.setattr(train_net, "read_config", lambda args: None)
    monkeypatch.setattr(train_net, "launch", stopped)
    with pytest.raises(SystemExit) as error:
        train_net.invoke_main()
    assert error.value.code == 130
    assert capsys.readouterr().err.startswith(f"Stopped.{hint}")
