"""Trainings with pseudo labels whose students are distilled, too: the schedules of the phases."""

from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import load_config
from kd_d2.projects.pseudo_label.class_lists import PhaseClasses
from kd_d2.projects.pseudo_label.phases import plan

SHAPES = tuple(CLASSES)
FIRST = SHAPES[:3]
LGD = "configs/LGD/fcos_x101.yaml"


def distilled(*overrides):
    """LGD's longest schedule of 180,000 iterations as a training with pseudo labels."""
    node = ["TEACHERS", "['x=x.yaml']", "LABELED", "['coco_2017_train']"]
    values = [f"PSEUDO_LABEL.{x}" if k % 2 == 0 else x for k, x in enumerate(node)]
    return load_config(LGD, [*values, "DATASETS.TEST", "()", *map(str, overrides)])


def phases(cfg, classes=PhaseClasses(SHAPES, (SHAPES,), SHAPES)):  # noqa: B008, it is frozen
    return {x.name: x.cfg for x in plan(cfg, classes, num_labeled=24000)}


def distillation(phase):
    kd = phase.MODEL.KD
    return kd.FREEZE_BACKBONE, kd.LGD.PRE_NONDISTILL, kd.LGD.POST_NONDISTILL


def test_distillation_has_its_shares_of_each_phase():
    cfg = distilled()
    assert cfg.SOLVER.MAX_ITER == 180000
    b, c = phases(cfg).values()
    assert c.SOLVER.MAX_ITER == 18000 and c.SOLVER.STEPS == (12000, 16000)
    assert distillation(b) == (20000, 30000, 50000)
    # a tenth of phase B's end, and nothing of its beginning, which C has not
    assert distillation(c) == (None, 0, 5000)
    cfg.PSEUDO_LABEL.BASELINE = "labels"
    [labels] = phases(cfg).values()
    assert labels.SOLVER.MAX_ITER == 198000
    assert distillation(labels) == (22000, 33000, 55000)


def test_distillation_that_begins_anew_in_phase_c_is_warmed_up():
    other = distilled("PSEUDO_LABEL.PHASE_C.WEIGHTS", "other.pth")
    assert distillation(phases(other)["c"]) == (2000, 3000, 5000)
    # what a label encoder has learned of a class does not go by its name
    fewer = phases(distilled(), PhaseClasses(SHAPES, (FIRST,), FIRST))["c"]
    assert fewer.MODEL.WEIGHTS_CLASSES and distillation(fewer) == (2000, 3000, 5000)


def test_shares_and_auto_follow_by_themselves():
    cfg = distilled()
    cfg.MODEL.KD.LGD.PRE_NONDISTILL, cfg.MODEL.KD.LGD.POST_NONDISTILL = "auto", 0.25
    assert distillation(phases(cfg)["c"]) == (None, "auto", 0.25)


def test_a_trainable_teacher_s_warm_up():
    assert phases(distilled())["c"].SOLVER.TEACHER.WARMUP_ITERS is None  # the student's
    cfg = distilled("SOLVER.TEACHER.WARMUP_ITERS", 4000)
    assert phases(cfg)["c"].SOLVER.TEACHER.WARMUP_ITERS == 500
    assert phases(cfg)["b"].SOLVER.TEACHER.WARMUP_ITERS == 4000
