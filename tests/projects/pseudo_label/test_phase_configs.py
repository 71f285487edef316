"""The configs of the phases."""

import os

import pytest

from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import load_config
from kd_d2.projects.pseudo_label.class_lists import PhaseClasses
from kd_d2.projects.pseudo_label.phases import phase_c_length, plan

SHAPES = tuple(CLASSES)
SAME = PhaseClasses(SHAPES, (SHAPES,), SHAPES)


def recipe(*overrides):
    """The quickstart's, whose teacher needs not be there for the phases' configs."""
    values = ["OUTPUT_DIR", "out", *map(str, overrides)]
    return load_config("configs/quickstart/pseudo_label_gfl.yaml", values)


def phases(cfg, classes=SAME, num_labeled=200):
    return {x.name: x.cfg for x in plan(cfg, classes, num_labeled)}


@pytest.mark.parametrize(
    "images, iterations", [(23657, 17743), (118287, 88715), (1183, 2000), (0, 2000)]
)
def test_length_of_phase_c_on_coco(images, iterations):
    cfg = load_config("configs/PseudoLabel/faster_rcnn_r50_x101_20p_1x.yaml")
    assert phase_c_length(cfg, images) == iterations


def test_phase_b_learns_what_was_exported():
    b = phases(recipe())["b"]
    assert (f"pseudo_labels:{os.path.abspath('out/labels/export')}",) == b.DATASETS.TRAIN
    assert b.DATASETS.TEST == ("shapes_val",)
    assert b.OUTPUT_DIR == "out/phase_b" and b.PSEUDO_LABEL.TEACHERS == []
    assert not b.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    weights = b.MODEL.LABEL_WEIGHTS
    assert weights.IGNORE and not weights.ENABLED
    plain = load_config("configs/quickstart/plain_gfl.yaml")
    assert b.SOLVER == plain.SOLVER and b.MODEL.WEIGHTS == plain.MODEL.WEIGHTS


def test_phase_b_with_weights_and_without_ignore_boxes():
    cfg = recipe("PSEUDO_LABEL.WEIGHTS", "linear", "PSEUDO_LABEL.USE_IGNORE", False)
    weights = phases(cfg)["b"].MODEL.LABEL_WEIGHTS
    assert weights.ENABLED and not weights.IGNORE


def test_labels_may_lie_elsewhere():
    b = phases(recipe("PSEUDO_LABEL.LABELS_DIR", "/shared/labels"))["b"]
    assert b.DATASETS.TRAIN == ("pseudo_labels:/shared/labels/export",)


def test_phase_c_begins_anew_with_the_weights_of_b():
    cfg = recipe("SOLVER.MAX_ITER", 1200, "SOLVER.STEPS", "(800, 1000)")
    c = phases(cfg)["c"]
    assert c.MODEL.WEIGHTS == "out/phase_b/model_final.pth"
    assert c.DATASETS.TRAIN == ("shapes_train_10p_s0",)
    # 6 epochs of 200 images, 8 at once; 2/3 and 5/6 of it
    assert (c.SOLVER.MAX_ITER, c.SOLVER.STEPS) == (150, (100, 125))
    assert pytest.approx(0.1 * cfg.SOLVER.BASE_LR) == c.SOLVER.BASE_LR
    assert c.SOLVER.WARMUP_ITERS == 10
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS == c.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert not c.MODEL.LABEL_WEIGHTS.IGNORE
    assert c.MODEL.WEIGHTS_CLASSES == [] and c.DATALOADER.DATASET_SHARES == []


def test_a_trainable_teacher_s_rate_follows():
    c = phases(recipe("SOLVER.TEACHER.BASE_LR", 0.5, "SOLVER.TEACHER.STEPS", "(750,)"))["c"]
    assert pytest.approx(0.05) == c.SOLVER.TEACHER.BASE_LR
    assert c.SOLVER.TEACHER.STEPS == (75,)


def test_phase_c_may_begin_with_other_weights():
    cfg = recipe("PSEUDO_LABEL.PHASE_C.WEIGHTS", "other.pth")
    assert phases(cfg)["c"].MODEL.WEIGHTS == "other.pth"


def test_mixed_with_pseudo_labels():
    c = phases(recipe("PSEUDO_LABEL.PHASE_C.MIX_PSEUDO", 0.25))["c"]
    labelled, pseudo = c.DATASETS.TRAIN
    assert labelled == "shapes_train_10p_s0" and pseudo.startswith("pseudo_labels:")
    assert c.DATALOADER.DATASET_SHARES == [0.75, 0.25]
    assert not c.DATALOADER.FILTER_EMPTY_ANNOTATIONS and c.MODEL.LABEL_WEIGHTS.IGNORE


def test_which_phases():
    assert [*phases(recipe())] == ["b", "c"]
    assert [*phases(recipe("PSEUDO_LABEL.PHASES", "['A', 'B']"))] == ["b"]
    assert [*phases(recipe("PSEUDO_LABEL.PHASES", "['C']"))] == ["c"]
    assert [*phases(recipe("PSEUDO_LABEL.PHASES", "['A']"))] == []
    no_labels = recipe("PSEUDO_LABEL.LABELED", "[]")
    assert [*phases(no_labels, PhaseClasses(SHAPES, (), SHAPES), 0)] == ["b"]


def test_baselines_are_as_long_as_both_phases():
    for kind in ("labels", "joint"):
        cfg = recipe("PSEUDO_LABEL.BASELINE", kind)
        [(name, phase)] = phases(cfg).items()
        assert name == kind and f"out/baseline_{kind}" == phase.OUTPUT_DIR
        assert cfg.SOLVER.MAX_ITER + 150 == phase.SOLVER.MAX_ITER
        assert cfg.SOLVER.BASE_LR == phase.SOLVER.BASE_LR
        assert cfg.MODEL.WEIGHTS == phase.MODEL.WEIGHTS


def test_the_joint_baseline_sees_people_s_and_pseudo_labels():
    [phase] = plan(recipe("PSEUDO_LABEL.BASELINE", "joint"), SAME, 200)
    [name] = phase.cfg.DATASETS.TRAIN
    assert name == f"relabeled:{os.path.abspath('out/baseline_joint/labels.json')}"
    assert phase.view.others and list(phase.view.datasets) == ["shapes_train_10p_s0"]
    assert phase.view.pseudo_labels == os.path.abspath("out/labels/export")
    [labels] = plan(recipe("PSEUDO_LABEL.BASELINE", "labels"), SAME, 200)
    assert labels.view is None and labels.cfg.DATASETS.TRAIN == ("shapes_train_10p_s0",)


FIRST, REST = SHAPES[:3], SHAPES[3:]


@pytest.mark.parametrize("missing", ["pseudo", "mask", "background"])
def test_classes_that_people_have_not_labelled(missing):
    cfg = recipe("PSEUDO_LABEL.PHASE_C.MISSING", missing, "PSEUDO_LABEL.PHASE_C.MISSING_IOU", 0.6)
    c = plan(cfg, PhaseClasses(SHAPES, (FIRST,), SHAPES), 200)[-1]
    view, weights = c.view, c.cfg.MODEL.LABEL_WEIGHTS
    assert (f"relabeled:{os.path.abspath('out/phase_c/labels.json')}",) == c.cfg.DATASETS.TRAIN
    assert (tuple(view.classes), list(view.drop)) == (SHAPES, [])
    assert (view.missing, view.iou) == (missing, 0.6)
    assert (view.pseudo_labels is not None) == (missing == "pseudo")
    assert (missing == "mask") == weights.COVERED and (missing == "pseudo") == weights.IGNORE
    assert c.cfg.MODEL.GFL.NUM_CLASSES == 6 and c.cfg.MODEL.WEIGHTS_CLASSES == []


def test_a_student_that_keeps_the_labelled_classes_only():
    cfg = recipe("PSEUDO_LABEL.PHASE_C.MISSING", "drop")
    b, c = plan(cfg, PhaseClasses(SHAPES, (FIRST,), FIRST), 200)
    assert b.cfg.MODEL.GFL.NUM_CLASSES == 6 and c.cfg.MODEL.GFL.NUM_CLASSES == 3
    assert list(SHAPES) == c.cfg.MODEL.WEIGHTS_CLASSES
    assert c.view is None and c.cfg.DATASETS.TRAIN == ("shapes_train_10p_s0",)
    # the test set has six classes
    assert b.cfg.DATASETS.TEST == ("shapes_val",) and c.cfg.DATASETS.TEST == ()


def test_a_student_that_learns_a_new_class():
    cfg = recipe()
    c = plan(cfg, PhaseClasses(FIRST, ((*REST, *FIRST),), (*FIRST, *REST)), 200)[-1]
    assert c.cfg.MODEL.GFL.NUM_CLASSES == 6 and list(FIRST) == c.cfg.MODEL.WEIGHTS_CLASSES
    assert tuple(c.view.classes) == (*FIRST, *REST) and c.view.pseudo_labels is None


@pytest.mark.parametrize("missing", ["pseudo", "mask", "background"])
def test_data_sets_that_lack_different_classes(missing):
    """All classes are labelled, but none of the images has the labels of all."""
    cfg = recipe("PSEUDO_LABEL.PHASE_C.MISSING", missing, "PSEUDO_LABEL.LABELED", "['a', 'b']")
    classes = PhaseClasses(SHAPES, (FIRST, REST), SHAPES)
    assert classes.missing == SHAPES
    c = plan(cfg, classes, 200)[-1]
    weights = c.cfg.MODEL.LABEL_WEIGHTS
    assert c.view.missing == missing and list(c.view.datasets) == ["a", "b"]
    assert (c.view.pseudo_labels is not None) == (missing == "pseudo") == weights.IGNORE
    assert (missing == "mask") == weights.COVERED
    assert (missing != "pseudo") == c.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS


def test_data_sets_that_have_all_classes():
    cfg = recipe("PSEUDO_LABEL.PHASE_C.MISSING", "mask", "PSEUDO_LABEL.LABELED", "['a', 'b']")
    classes = PhaseClasses(SHAPES, (SHAPES, SHAPES[::-1]), SHAPES)
    c = plan(cfg, classes, 200)[-1]
    assert classes.missing == () and c.view.missing == "background"
    assert not c.cfg.MODEL.LABEL_WEIGHTS.COVERED


@pytest.mark.parametrize("kind", ["labels", "joint"])
@pytest.mark.parametrize("missing", ["pseudo", "mask", "background"])
def test_baselines_whose_labels_lack_classes(kind, missing):
    cfg = recipe("PSEUDO_LABEL.PHASE_C.MISSING", missing, "PSEUDO_LABEL.BASELINE", kind)
    [phase] = plan(cfg, PhaseClasses(SHAPES, (FIRST,), SHAPES), 200)
    assert (missing == "mask") == phase.cfg.MODEL.LABEL_WEIGHTS.COVERED
    fills = kind == "labels" and missing == "pseudo"  # it has no pseudo labels
    assert phase.view.missing == ("background" if fills else missing)
    assert (phase.view.pseudo_labels is not None) == phase.view.others == (kind == "joint")


@pytest.mark.parametrize("missing", ["background", "mask"])
def test_a_class_that_teachers_do_not_know_is_missing_in_pseudo_labels(missing):
    labels = PhaseClasses(FIRST, ((*REST, *FIRST),), (*FIRST, *REST))
    values = ["PSEUDO_LABEL.PHASE_C.MISSING", missing, "PSEUDO_LABEL.BASELINE", "joint"]
    [joint] = plan(recipe(*values), labels, 200)
    c = plan(recipe(*values[:2], "PSEUDO_LABEL.PHASE_C.MIX_PSEUDO", 0.25), labels, 200)[-1]
    for phase, view in ((joint, joint.view), (c, c.mixed)):
        assert view.missing == missing
        assert (missing == "mask") == phase.cfg.MODEL.LABEL_WEIGHTS.COVERED
    assert c.view.missing == "background"  # people have labelled all


def test_mixed_with_pseudo_labels_of_other_classes():
    cfg = recipe("PSEUDO_LABEL.PHASE_C.MIX_PSEUDO", 0.25, "PSEUDO_LABEL.PHASE_C.MISSING", "drop")
    b, c = plan(cfg, PhaseClasses(SHAPES, (FIRST,), FIRST), 200)
    labelled, pseudo = c.cfg.DATASETS.TRAIN
    assert labelled == "shapes_train_10p_s0"
    assert pseudo == f"relabeled:{os.path.abspath('out/phase_c/pseudo_labels.json')}"
    assert list(c.mixed.datasets) == list(b.cfg.DATASETS.TRAIN)
    assert (tuple(c.mixed.classes), tuple(c.mixed.drop)) == (FIRST, REST)
    assert (c.mixed.missing, c.mixed.pseudo_labels) == ("background", None)
    assert plan(cfg, SAME, 200)[-1].mixed is None
