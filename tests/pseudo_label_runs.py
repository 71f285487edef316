"""Trainings with pseudo labels on a few images, several commands in one interpreter.

``few_first`` and ``few_rest`` are ``few_train`` with the labels of three classes each, and
``few_val_first`` is ``few_val`` with those of the first three.
"""

import json
import subprocess
import sys

import torch
import yaml
from test_train_net import ROOT, environment
from tiny_models import write_untrained

from kd_d2.engine import load_config

DRIVER = """
import json, os, sys
import train_net
from detectron2.engine import default_argument_parser
from detectron2.data import DatasetCatalog, MetadataCatalog
from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import launch

register_shapes(sys.argv[1], {"train": 6, "val": 3, "unlabeled": 5}, prefix="few")

def register_part(name, base, classes):
    def load():
        records = [dict(x) for x in DatasetCatalog.get(base)]
        for record in records:
            own = [(CLASSES[x["category_id"]], x) for x in record["annotations"]]
            record["annotations"] = [
                x | {"category_id": classes.index(name)} for name, x in own if name in classes
            ]
        return records

    DatasetCatalog.register(name, load)
    root = MetadataCatalog.get(base).image_root
    MetadataCatalog.get(name).set(thing_classes=classes, image_root=root, evaluator_type="coco")

FIRST, REST = list(CLASSES)[:3], list(CLASSES)[3:]
register_part("few_first", "few_train", FIRST)
register_part("few_rest", "few_train", REST)
register_part("few_val_first", "few_val", FIRST)

def main(args):
    register_shapes(sys.argv[1], {"train": 6, "val": 3, "unlabeled": 5}, prefix="few")
    return train_net.main(args)

if __name__ == "__main__":
    results = []
    for command in json.loads(open(sys.argv[2]).read()):
        args = default_argument_parser().parse_args(command)
        args.dist_url = "auto"
        try:
            scores = None
            if args.num_gpus > 1:
                launch(main, args.num_gpus, dist_url="auto", args=(args,))
            else:
                scores = main(args)
            results.append({"keys": sorted(scores or {})})
        except SystemExit as error:
            results.append({"exit": error.code})
        json.dump(results, open(sys.argv[2] + ".results", "w"))
"""


def fill_workplace(folder):
    """Writes a driver, an untrained teacher and a recipe; returns the folder."""
    (folder / "driver.py").write_text(DRIVER)
    torch.manual_seed(0)
    teacher = load_config(str(ROOT / "configs/quickstart/plain_gfl.yaml"))
    teacher.MODEL.DEVICE = "cpu"
    config, weights = write_untrained(teacher, folder, "teacher")
    state = torch.load(weights)
    state["model"]["head.cls_score.weight"] *= 40  # an untrained detector is sure of nothing
    torch.save(state, weights)
    recipe = {
        "_BASE_": str(ROOT / "configs/quickstart/pseudo_label_gfl.yaml"),
        "DATASETS": {"TEST": ["few_val"]},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 3, "STEPS": [2], "CHECKPOINT_PERIOD": 1},
        "TEST": {"EVAL_PERIOD": 0},
        "PSEUDO_LABEL": {
            "TEACHERS": [f"big={config},{weights}"],
            "UNLABELED": ["few_unlabeled"],
            "LABELED": ["few_train"],
            "LICENCE": "CC0",
            "GENERATE": {"FLOOR": 0.01, "SHARD_SIZE": 4},
            "MERGE": {"THRESHOLD": 0.02},
            "FILTER": {"T_IGNORE": 0.015},
            "PHASE_C": {"EPOCHS": 0.1, "MIN_ITERS": 2, "WARMUP_ITERS": 1},
        },
        "VERSION": 2,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def drive(workplace, name, *commands):
    """Runs commands in one interpreter; returns their results, and what was printed."""
    path = workplace / f"{name}.json"
    path.write_text(json.dumps([["--config-file", "recipe.yaml", *c.split()] for c in commands]))
    done = subprocess.run(
        [sys.executable, str(workplace / "driver.py"), str(workplace / "data"), str(path)],
        cwd=workplace,
        # without it fvcore's scripted losses round differently in the first steps of a process
        env={**environment(), "PYTORCH_JIT": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    results = path.with_name(f"{name}.json.results")
    assert results.exists(), done.stdout + done.stderr
    return json.loads(results.read_text()), done.stdout + done.stderr
