"""The configs of trainings with pseudo labels on COCO."""

from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from kd_d2.config.check import check_config
from kd_d2.config.names import detector_node
from kd_d2.engine import load_config
from kd_d2.projects.pseudo_label.class_lists import PhaseClasses
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.phases import plan
from kd_d2.projects.pseudo_label.recipe import teacher_sources, unified_classes

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "PseudoLabel"
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
    assert unified_classes(cfg) == CLASSES
    own = cfg.clone()
    own.DATASETS.TEST = ()  # COCO is not here
    b, c = plan(own, PhaseClasses(CLASSES, CLASSES, CLASSES), 23657)
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
