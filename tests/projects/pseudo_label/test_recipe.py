"""Which classes the student has, and what is wrong with a recipe before anything is labelled."""

import json
import os

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from recipe_cases import class_map, data_set, recipe, write_teacher

from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.data.shapes_render import CLASSES
from kd_d2.projects.pseudo_label import training
from kd_d2.projects.pseudo_label.check_recipe import check_recipe
from kd_d2.projects.pseudo_label.class_lists import class_lists
from kd_d2.projects.pseudo_label.phase_record import what_it_learns
from kd_d2.projects.pseudo_label.phases import plan
from kd_d2.projects.pseudo_label.recipe import (
    export_settings,
    filter_settings,
    generate_settings,
    image_sources,
    labels_folder,
    merge_settings,
    unified,
)

SHAPES = tuple(CLASSES)
FIRST, REST = SHAPES[:3], SHAPES[3:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def big(folder):
    return write_teacher(folder, "big")


@pytest.fixture(scope="module")
def two(folder):
    """Teachers of three classes each, in another order than the test set's."""
    with data_set("recipe_rest", REST), data_set("recipe_first", FIRST[::-1]):
        yield [
            write_teacher(folder, "rest", "recipe_rest", 3),
            write_teacher(folder, "first", "recipe_first", 3),
        ]


def test_classes_of_one_teacher(folder, big):
    classes = class_lists(recipe(folder, teachers=[big]))
    assert classes.taught == classes.final == SHAPES and classes.labelled == (SHAPES,)
    assert classes.missing == ()


def test_classes_are_in_the_order_of_the_test_set(folder, two):
    cfg = recipe(folder, teachers=two)
    assert unified(cfg).names == (*REST, *FIRST[::-1])
    assert class_lists(cfg).taught == SHAPES
    assert merge_settings(cfg, SHAPES).classes == SHAPES


def test_classes_without_a_test_set(folder, two):
    cfg = recipe(folder, "DATASETS.TEST", "()", "PSEUDO_LABEL.LABELED", "[]", teachers=two)
    assert class_lists(cfg).taught == (*REST, *FIRST[::-1])
    cfg.PSEUDO_LABEL.CLASSES = list(SHAPES)
    assert class_lists(cfg).taught == SHAPES
    cfg.PSEUDO_LABEL.CLASSES = list(FIRST)
    with pytest.raises(ConfigError, match="CLASSES is .* and the teachers' classes are"):
        class_lists(cfg)


def test_classes_that_people_have_labelled(folder, big):
    with data_set("recipe_labels", FIRST):
        cfg = recipe(folder, "PSEUDO_LABEL.LABELED", "['recipe_labels']", teachers=[big])
        classes = class_lists(cfg)
        assert (classes.labelled, classes.final, classes.missing) == ((FIRST,), SHAPES, REST)
        cfg.PSEUDO_LABEL.PHASE_C.MISSING = "drop"
        assert class_lists(cfg).final == FIRST
        cfg.PSEUDO_LABEL.PHASE_C.CLASSES = [SHAPES[5], *FIRST]
        with pytest.raises(ConfigError, match=f"not every data set .*{SHAPES[5]}.*list those"):
            class_lists(cfg)
        cfg.PSEUDO_LABEL.PHASE_C.MISSING = "mask"
        assert class_lists(cfg).missing == (SHAPES[5],)
    with data_set("recipe_labels", (*FIRST, "moon")):
        cfg.PSEUDO_LABEL.PHASE_C.CLASSES = []
        with pytest.raises(ConfigError, match="LABELED has the class moon, which no teacher"):
            class_lists(cfg)
        cfg.PSEUDO_LABEL.PHASE_C.CLASSES = [*SHAPES, "moon"]
        assert class_lists(cfg).final == (*SHAPES, "moon")
        cfg.PSEUDO_LABEL.PHASE_C.CLASSES = ["sun", *SHAPES]
        with pytest.raises(ConfigError, match="CLASSES has sun, which neither"):
            class_lists(cfg)
    with data_set("recipe_labels", ("moon", "sun")):
        cfg.PSEUDO_LABEL.PHASE_C.CLASSES = list(SHAPES)
        with pytest.raises(ConfigError, match="None of the student's classes"):
            class_lists(cfg)


def test_classes_of_labels_that_are_there(folder, tmp_path):
    """They have been made with teachers that need not be at hand."""
    export = tmp_path / "export"
    export.mkdir()
    values = ["PSEUDO_LABEL.LABELS_DIR", tmp_path, "PSEUDO_LABEL.PHASES", "['B', 'C']"]
    cfg = recipe(folder, *values, teachers=["gone=gone.yaml,gone.pth"])
    with pytest.raises(ValueError, match="export holds no exported pseudo labels"):
        class_lists(cfg)
    categories = [{"id": 7 - k, "name": name} for k, name in enumerate(SHAPES)]
    (export / "pseudo.json").write_text(json.dumps({"categories": categories}))
    assert class_lists(cfg).taught == SHAPES[::-1]
    cfg.PSEUDO_LABEL.CLASSES = list(SHAPES)
    with pytest.raises(ConfigError, match="give these in this order"):
        class_lists(cfg)


def test_class_maps(folder, big):
    names = {name: name.upper() for name in FIRST} | dict.fromkeys(REST, "drop")
    entry = class_map(folder, "big", names)
    cfg = recipe(folder, "PSEUDO_LABEL.CLASS_MAPS", repr([entry]), teachers=[big])
    assert unified(cfg).names == tuple(name.upper() for name in FIRST)
    cfg.PSEUDO_LABEL.CLASS_MAPS = [entry.replace("big=", "bigg=")]
    with pytest.raises(ConfigError, match="CLASS_MAPS: Unknown teacher 'bigg': did you mean 'big'"):
        unified(cfg)


def test_what_the_stages_are_asked_for(folder, big):
    cfg = recipe(
        folder,
        *("PSEUDO_LABEL.GENERATE.TOPK", 50, "PSEUDO_LABEL.GENERATE.SIZE", "(64, 128)"),
        *("PSEUDO_LABEL.FILTER.MAX_BOXES", 7, "PSEUDO_LABEL.WEIGHTS", "linear"),
        *("PSEUDO_LABEL.MERGE.THRESHOLDS", "per_class_fbeta", "DATALOADER.NUM_WORKERS", 3),
        *("PSEUDO_LABEL.MERGE.BETA", 1, "PSEUDO_LABEL.MERGE.LIMITS", "[0.2, 0.95]"),
        *("PSEUDO_LABEL.GENERATE.NMS", 0.6),
        teachers=[big],
    )
    generate, merge = generate_settings(cfg), merge_settings(cfg, SHAPES)
    assert (generate.topk, generate.size, generate.num_workers) == (50, (64, 128), 3)
    assert (generate.nms, merge.beta, merge.limits) == (0.6, 1, (0.2, 0.95))
    assert merge.labels.name == "shapes_train_10p_s0" and merge.threshold_mode == "per_class_fbeta"
    assert filter_settings(cfg).max_boxes == 7 and export_settings(cfg).weight_mode == "linear"
    assert labels_folder(cfg) == os.path.abspath(folder / "out" / "labels")
    cfg.PSEUDO_LABEL.MERGE.THRESHOLD_LABELS = "shapes_val"
    assert merge_settings(cfg, SHAPES).labels.name == "shapes_val"


@pytest.mark.parametrize(
    "part, sources",
    [
        ("unlabeled", ["shapes_train_10p_s0_rest", "shapes_unlabeled"]),
        ("labeled", ["shapes_train_10p_s0"]),
        (
            "unlabeled+labeled",
            ["shapes_train_10p_s0_rest", "shapes_unlabeled", "shapes_train_10p_s0"],
        ),
    ],
)
def test_whose_images_are_labelled(part, sources, folder, big):
    cfg = recipe(folder, "PSEUDO_LABEL.PHASE_B_IMAGES", part, teachers=[big])
    assert image_sources(cfg) == sources


def test_a_good_recipe_passes(folder, big, two):
    for cfg in (recipe(folder, teachers=[big]), recipe(folder, teachers=two)):
        check_config(cfg)
        check_recipe(cfg)
        assert not (folder / "out").exists()  # nothing is written


NODE = "PSEUDO_LABEL."


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"TEACHERS": "['big']"}, "TEACHERS is 'big': it must be NAME=CONFIG"),
        ({"TEACHERS": "['big=no.yaml,no.pth']"}, "no.yaml"),
        ({"UNLABELED": "[]", "LABELED": "[]"}, "name images to label"),
        ({"UNLABELED": "['nowhere']"}, "UNLABELED names the data set 'nowhere'"),
        ({"UNLABELED": "['/no/where']"}, "UNLABELED names /no/where, which is no folder"),
        ({"UNLABELED": "['list.json']"}, "list.json, which is no FILE.json,FOLDER"),
        ({"LABELED": "['nowhere']"}, "LABELED names the data set 'nowhere'"),
        ({"LABELED": "[]", "PHASE_B_IMAGES": "labeled"}, "PHASE_B_IMAGES is labeled, but"),
        ({"LABELED": "[]", "BASELINE": "joint"}, "BASELINE joint needs people's labels"),
        ({"LABELED": "[]", "PHASES": "['C']"}, "PHASES is C alone, and"),
        ({"LABELED": "[]", "MERGE.THRESHOLDS": "per_class_fbeta"}, "per_class_fbeta needs labels"),
        ({"PHASES": "['A', 'D']"}, "PHASES is .*some of A, B, C"),
        ({"GENERATE.FLOOR": "2.0"}, "PSEUDO_LABEL.GENERATE.FLOOR is 2.0; it must be a number from"),
        ({"GENERATE.BATCH": "0"}, "PSEUDO_LABEL.GENERATE.BATCH is 0"),
        ({"MERGE.MODE": "soft"}, "MERGE.MODE is 'soft'; it must be one of nms, wbf, vote"),
        ({"MERGE.THRESHOLD": "1.5"}, "MERGE.THRESHOLD is 1.5"),
        ({"MERGE.THRESHOLDS": "file"}, "a PSEUDO_LABEL.MERGE.THRESHOLD_FILE"),
        ({"FILTER.MIN_AGREEMENT": "0.7"}, "MIN_AGREEMENT needs mirrored images"),
        (
            {"../MODEL.LABEL_WEIGHTS.BOX_LOSS": "reliable"},
            "BOX_LOSS reliable needs mirrored images",
        ),
        ({"FILTER.T_IGNORE": "0.6"}, "T_IGNORE .* is 0.6, above .* 0.4 of 'circle'"),
        ({"GENERATE.NMS": "1.5"}, "GENERATE.NMS is 1.5; it must be a number from 0 to 1, or None"),
        ({"MERGE.BETA": "0.0"}, "MERGE.BETA is 0.0; it must be a number above 0"),
        ({"MERGE.LIMITS": "(0.9, 0.3)"}, "MERGE.LIMITS is .*the lower one first"),
        ({"MERGE.LIMITS": "(0.3, 1.0)"}, "MERGE.LIMITS is .*between 0 and 1"),
        ({"MERGE.LIMITS": "(0.3,)"}, "MERGE.LIMITS is .*two numbers"),
        ({"FILTER.T_IGNORE": "7.0"}, "FILTER.T_IGNORE is 7.0"),
        ({"PHASE_C.MISSING": "guess"}, "PHASE_C.MISSING is 'guess'"),
        ({"PHASE_C.MIX_PSEUDO": "1.0"}, "MIX_PSEUDO is 1.0; it must be a number .*below 1"),
        ({"PHASE_C.LR_FACTOR": "0.0"}, "LR_FACTOR is 0.0"),
        ({"WEIGHTS": "much"}, "WEIGHTS is 'much'"),
        ({"CLASSES": "['circle']"}, "CLASSES is"),
        ({"../MODEL.GFL.NUM_CLASSES": "5"}, "MODEL.GFL.NUM_CLASSES is 5: set it to 6"),
        ({"../DATASETS.TEST": "('coco_2017_val',)"}, "coco_2017_val"),
    ],
)
def test_mistakes(overrides, words, folder, big):
    values = {"TEACHERS": repr([big]), **overrides}
    pairs = {(NODE + k).replace("PSEUDO_LABEL.../", ""): v for k, v in values.items()}
    cfg = recipe(folder, *(x for pair in pairs.items() for x in pair), teachers=[big])
    with pytest.raises((ValueError, OSError), match=words) as caught:
        check_config(cfg)
        check_recipe(cfg)
    assert "\n" not in str(caught.value)


def test_what_the_stages_do_by_default(folder, big):
    cfg = recipe(folder, teachers=[big])
    merge = merge_settings(cfg, SHAPES)
    assert (generate_settings(cfg).nms, merge.beta, merge.limits) == (None, 0.5, (0.3, 0.9))


@pytest.mark.parametrize(
    "values",
    [
        {"PSEUDO_LABEL.GENERATE.FLIP": "True"},
        {"PSEUDO_LABEL.BASELINE": "labels"},  # nobody makes labels
        {"MODEL.LABEL_WEIGHTS.BOX_LOSS": "none"},
    ],
)
def test_reliable_boxes_need_mirrored_images_only_where_they_are_made(values, folder, big):
    values = {"MODEL.LABEL_WEIGHTS.BOX_LOSS": "reliable", **values}
    check_recipe(recipe(folder, *(x for pair in values.items() for x in pair), teachers=[big]))


def test_another_threshold_is_another_recipe(folder, big):
    """Trainings on labels that were made otherwise are not gone on with."""

    def hash_with(*overrides):
        cfg = recipe(folder, *overrides, teachers=[big])
        return what_it_learns(cfg, plan(cfg, class_lists(cfg), 200)[0])["recipe"]

    values = [(), (NODE + "GENERATE.NMS", 0.6), (NODE + "MERGE.BETA", 1.0)]
    hashes = [hash_with(*x) for x in (*values, (NODE + "MERGE.LIMITS", "(0.2, 0.9)"))]
    assert len(set(hashes)) == 4 and hash_with() == hashes[0]


@pytest.mark.parametrize(
    "values, words",
    [
        (
            {"MERGE.THRESHOLDS": "per_class_fbeta", "PHASE_B_IMAGES": "unlabeled"},
            "None of the images of shapes_train_10p_s0 is in the run",
        ),
        (
            {"MERGE.THRESHOLDS": "per_class_fbeta", "MERGE.THRESHOLD_LABELS": "shapes_val"},
            "None of the images of shapes_val is in the run",
        ),
        (
            {"MERGE.THRESHOLDS": "per_class_count", "MERGE.THRESHOLD_LABELS": "shapes_unlabeled"},
            "shapes_unlabeled has no labelled image",
        ),
        (
            {"MERGE.THRESHOLDS": "per_class_count", "FILTER.T_IGNORE": "0.35"},
            "T_IGNORE .* is 0.35, above .* 0.3 that 'circle' may get",
        ),
    ],
)
def test_thresholds_that_cannot_be_found(values, words, folder, big, tmp_path, monkeypatch):
    """Told before there is a run, which other images would not fit, and before it takes hours."""

    def fail(*_, **__):
        raise AssertionError("begun")

    monkeypatch.setattr(training, "prepare_run", fail)
    pairs = [x for key, value in values.items() for x in (NODE + key, value)]
    cfg = recipe(folder, *pairs, "OUTPUT_DIR", tmp_path, teachers=[big])
    with pytest.raises(ConfigError, match=words):
        check_recipe(cfg)
        training.make_labels(cfg, class_lists(cfg))
    usual = recipe(folder, "OUTPUT_DIR", tmp_path, *pairs[:2], teachers=[big])
    with pytest.raises(AssertionError, match="begun"):
        training.make_labels(usual, class_lists(usual))


def test_a_student_that_cannot_mask_classes(folder, big):
    """Refused at the start, and not when phase C begins."""
    with data_set("recipe_labels", FIRST):
        cfg = recipe(folder, "PSEUDO_LABEL.LABELED", "['recipe_labels']", teachers=[big])
        cfg.PSEUDO_LABEL.PHASE_C.MISSING = "mask"
        check_recipe(cfg)
        rcnn = recipe(folder, "MODEL.MASK_ON", False, teachers=[big])
        rcnn.merge_from_file("configs/quickstart/plain_faster_rcnn.yaml")
        rcnn.PSEUDO_LABEL = cfg.PSEUDO_LABEL
        with pytest.raises(ConfigError, match="USE_SIGMOID_CE"):
            check_recipe(rcnn)


def test_missing_classes_that_nobody_looks_for(folder, big):
    with data_set("recipe_labels", FIRST):
        cfg = recipe(folder, "PSEUDO_LABEL.LABELED", "['recipe_labels']", teachers=[big])
        check_recipe(cfg)
        cfg.PSEUDO_LABEL.PHASE_B_IMAGES = "unlabeled"
        with pytest.raises(
            ConfigError, match="images with no labels of triangle, star, cross, and PHASE_C"
        ):
            check_recipe(cfg)


def test_a_student_that_knows_no_weights(folder, big, monkeypatch):
    class Own(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "GFL", Own)
    cfg = recipe(folder, teachers=[big])
    with pytest.raises(ConfigError, match="losses of a Own cannot be weighted.*USE_IGNORE False"):
        check_recipe(cfg)
    cfg.PSEUDO_LABEL.USE_IGNORE = False
    check_recipe(cfg)


def test_a_student_with_masks(folder, big):
    cfg = recipe(folder, teachers=[big])
    cfg.merge_from_file("configs/quickstart/plain_mask_rcnn.yaml")
    with pytest.raises(ConfigError, match="MODEL.MASK_ON is True, and pseudo labels are boxes"):
        check_recipe(cfg)


def test_a_last_phase_that_cannot_be_evaluated(folder, big):
    with data_set("recipe_labels", FIRST):
        cfg = recipe(folder, "PSEUDO_LABEL.LABELED", "['recipe_labels']", teachers=[big])
        cfg.PSEUDO_LABEL.PHASE_C.MISSING = "drop"
        with pytest.raises(ConfigError, match="has not the classes of the student in its last"):
            check_recipe(cfg)
        cfg.DATASETS.TEST = ()
        check_recipe(cfg)
