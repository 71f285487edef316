"""The configs of trainings with pseudo labels on COCO."""

import json
import subprocess
import sys

import pytest
from detectron2.data import MetadataCatalog
from test_train_net import ROOT, environment

from kd_d2.config.check import check_config
from kd_d2.config.names import detector_node
from kd_d2.engine import load_config
from kd_d2.projects.pseudo_label.class_lists import PhaseClasses
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.phases import plan
from kd_d2.projects.pseudo_label.recipe import teacher_sources, unified

CONFIGS = ROOT / "configs" / "PseudoLabel"
RUNS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if not p.name.startswith("Base-"))
CLASSES = tuple(MetadataCatalog.get("coco_2017_train").thing_classes)


def load(name):
    cfg = load_config(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_there_are_such_configs():
    assert len(RUNS) >= 6


@pytest.mark.parametrize("name", RUNS)
def test_phases(name):
    cfg = load(name)
    check_config(cfg)
    check_pseudo_label_config(cfg)
    assert f"output/PseudoLabel/{name}" == cfg.OUTPUT_DIR
    assert unified(cfg).names == CLASSES
    own = cfg.clone()
    own.DATASETS.TEST = ()  # COCO is not here
    b, c = plan(own, PhaseClasses(CLASSES, (CLASSES,), CLASSES), 23657)
    for phase in (b, c):
        check_config(phase.cfg)
        node = phase.cfg.MODEL[detector_node(phase.cfg.MODEL.META_ARCHITECTURE)]
        assert node.NUM_CLASSES == 80
    assert (b.cfg.SOLVER.STEPS, b.cfg.SOLVER.MAX_ITER) == (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)
    # steps at 2/3 and 8/9, of B and of C
    for solver in (b.cfg.SOLVER, c.cfg.SOLVER):
        shares = [step / solver.MAX_ITER for step in solver.STEPS]
        assert shares == pytest.approx([2 / 3, 8 / 9], abs=1e-4)
    assert c.cfg.SOLVER.MAX_ITER == 17743 and c.cfg.SOLVER.WARMUP_ITERS == 500
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    two_stage = name.startswith("faster_rcnn")
    assert (0.02 if two_stage else 0.01) == b.cfg.SOLVER.BASE_LR
    assert pytest.approx(0.002 if two_stage else 0.001) == c.cfg.SOLVER.BASE_LR


@pytest.mark.parametrize("name", RUNS)
def test_the_name_says_who_teaches(name):
    teachers = [x.name for x in teacher_sources(load(name))]
    if "two_teachers" in name:
        assert len(teachers) == 2
    else:
        [teacher] = teachers
        assert f"_{teacher}_" in name


DRIVER = """
import json, sys
import train_net
from detectron2.engine import default_argument_parser

told = {}
for command in json.loads(sys.argv[1]):
    try:
        train_net.read_config(default_argument_parser().parse_args(command))
        told[" ".join(command)] = ""
    except Exception as error:
        told[" ".join(command)] = f"{type(error).__name__}: {error}"
json.dump(told, open("told.json", "w"))
"""


def write_coco(root):
    """Ten images of each part of COCO, each with a person; the images themselves are not there."""
    annotations = root / "coco" / "annotations"
    annotations.mkdir(parents=True)
    ids = MetadataCatalog.get("coco_2017_train").thing_dataset_id_to_contiguous_id
    categories = [{"id": x, "name": CLASSES[k]} for x, k in ids.items()]
    size = {"width": 640, "height": 480}
    images = [{"id": k, "file_name": f"{k}.jpg", **size} for k in range(1, 11)]
    more = {"bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0, "category_id": 1}
    boxes = [{"id": k, "image_id": k, **more} for k in range(1, 11)]
    for part in ("train2017", "val2017", "unlabeled2017"):
        (root / "coco" / part).mkdir()
        content = {"images": images, "categories": categories, "annotations": boxes}
        kind = "image_info" if part == "unlabeled2017" else "instances"
        (annotations / f"{kind}_{part}.json").write_text(json.dumps(content))


def test_all_of_them_can_be_started(tmp_path):
    """As train_net.py checks them; and without any label, too."""
    write_coco(tmp_path / "data")
    files = [["--config-file", str(CONFIGS / f"{name}.yaml")] for name in RUNS]
    no_labels = [*files[0], "PSEUDO_LABEL.LABELED", "[]"]
    (tmp_path / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, "driver.py", json.dumps([*files, no_labels])],
        cwd=tmp_path,
        env={**environment(), "DETECTRON2_DATASETS": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told) == len(RUNS) + 1 and not any(told.values()), told
