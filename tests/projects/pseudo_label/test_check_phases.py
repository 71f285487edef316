"""What would stop a training with pseudo labels after hours is found at its start."""

import json

import pytest
from recipe_cases import LABELLED, data_set, recipe, write_teacher

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.data.shapes_render import CLASSES
from kd_d2.projects.pseudo_label.check_recipe import check_recipe
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.phases import evaluated

SHAPES = tuple(CLASSES)
FIRST, REST = SHAPES[:3], SHAPES[3:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("phases")


@pytest.fixture(scope="module")
def big(folder):
    return write_teacher(folder, "big")


@pytest.fixture
def asked(folder, big):
    """Gives configs whose values of ``PSEUDO_LABEL`` are other ones."""

    def config(**values):
        pairs = [(f"PSEUDO_LABEL.{key}".replace("__", "."), x) for key, x in values.items()]
        return recipe(folder, *(x for pair in pairs for x in pair), teachers=[big])

    return config


def refused(cfg, words):
    check_config(cfg)
    with pytest.raises(ValueError, match=words) as caught:
        check_recipe(cfg)
    assert "\n" not in str(caught.value)


# ---- labels of people


def test_without_labels(asked):
    cfg = asked(LABELED="[]")
    check_config(cfg)
    check_recipe(cfg)


def test_data_sets_without_labels(asked):
    words = r"LABELED: The data set '{}' has images without labels, .* and this one in UNLABELED"
    refused(asked(LABELED=["shapes_unlabeled"]), words.format("shapes_unlabeled"))
    both = ["shapes_train_10p_s0", "shapes_train_10p_s0_rest"]
    refused(asked(LABELED=both, UNLABELED="[]"), words.format(both[1]))
    swapped = asked(LABELED=["shapes_unlabeled"], UNLABELED=["shapes_train_10p_s0"])
    refused(swapped, words.format("shapes_unlabeled"))
    nothing = [{"file_name": "a.png", "image_id": 1, "annotations": []}]
    with data_set("check_labels", SHAPES, nothing):
        refused(asked(LABELED=["check_labels"]), "LABELED: .* has no labelled box")


def test_each_data_set_is_read_once(asked):
    reads = []

    class Records(list):
        def __iter__(self):
            reads.append(1)
            return super().__iter__()

    with data_set("check_labels", SHAPES, Records(LABELLED)):
        for _ in range(2):
            check_recipe(asked(LABELED=["check_labels"]))
    assert len(reads) == 1


# ---- classes


def test_classes_that_some_data_sets_lack(asked):
    with data_set("check_first", FIRST), data_set("check_rest", REST):
        both = ["check_first", "check_rest"]
        for way in ("pseudo", "mask", "background"):
            check_recipe(asked(LABELED=both, PHASE_C__MISSING=way))
        refused(asked(LABELED=both, PHASE_B_IMAGES="unlabeled"), "no labels of circle, .*, cross,")
        refused(asked(LABELED=both, PHASE_C__MISSING="drop"), "MISSING is drop, but .* not every")


def test_classes_that_no_teacher_can_fill_in(asked):
    classes = {"PHASE_C__CLASSES": [*SHAPES, "moon"]}
    words = "MISSING is pseudo, but no teacher knows moon, and some of the images"

    def cases(**values):
        values |= classes
        cfg = asked(**values)
        cfg.DATASETS.TEST = ()
        return cfg

    with data_set("check_moon", (*SHAPES, "moon")), data_set("check_shapes", SHAPES):
        check_recipe(cases(LABELED=["check_moon"]))
        check_recipe(cases(LABELED=["check_moon"], BASELINE="labels"))
        for more in (
            {"LABELED": ["check_moon", "check_shapes"]},
            {"LABELED": ["check_moon"], "PHASE_C__MIX_PSEUDO": 0.25},
            {"LABELED": ["check_moon"], "BASELINE": "joint"},
        ):
            refused(cases(**more), words)
            check_recipe(cases(**more, PHASE_C__MISSING="mask"))


# ---- evaluation


def test_a_last_phase_b_that_cannot_be_evaluated(asked):
    words = r"DATASETS.TEST \('check_test',\) has not the classes of the student .* phase \(circle,"
    with data_set("check_test", FIRST):
        for values in ({"LABELED": "[]"}, {"PHASES": ["A", "B"]}):
            cfg = asked(**values)
            cfg.DATASETS.TEST = ("check_test",)
            refused(cfg, words)
            with pytest.raises(ConfigError, match=words):
                evaluated(cfg)
            cfg.DATASETS.TEST = ()
            check_recipe(cfg)


def test_what_is_evaluated_is_the_student_of_the_last_phase(asked):
    cfg = asked(PHASE_C__MISSING="drop", LABELED=["check_labels"])
    cfg.DATASETS.TEST, cfg.MODEL.WEIGHTS = ("shapes_val", "check_test"), "given.pth"
    with data_set("check_labels", FIRST), data_set("check_test", FIRST):
        c = evaluated(cfg)
        cfg.PSEUDO_LABEL.PHASES = ["A", "B"]
        b = evaluated(cfg)
    for phase, name, classes, test in ((b, "b", 6, "shapes_val"), (c, "c", 3, "check_test")):
        assert f"{cfg.OUTPUT_DIR}/phase_{name}" == phase.OUTPUT_DIR
        assert (classes, (test,)) == (phase.MODEL.GFL.NUM_CLASSES, phase.DATASETS.TEST)
        # those that are to be evaluated, not those that the phase has begun with
        assert (phase.MODEL.WEIGHTS, phase.MODEL.WEIGHTS_CLASSES) == ("given.pth", [])
    with pytest.raises(ConfigError, match=r"PHASES \['A'\] trains no student"):
        evaluated(asked(PHASES=["A"]))


# ---- weights and scores


def test_weights_of_phase_c(asked, folder):
    words = "PHASES has C without B, and there are no weights of B .*phase_b/model_final.pth"
    for names in (["C"], ["A", "C"]):
        refused(asked(PHASES=names), words)
    refused(asked(PHASE_C__WEIGHTS="none.pth"), "PHASE_C.WEIGHTS: Weights 'none.pth' not found")
    weights = folder / "out" / "phase_b" / "model_final.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    check_recipe(asked(PHASES=["A", "C"]))
    weights.unlink()
    check_recipe(asked(PHASES=["A", "C"], PHASE_C__WEIGHTS=folder / "big.pth"))


def test_a_file_of_thresholds(asked, tmp_path):
    file = tmp_path / "thresholds.json"
    cfg = asked(MERGE__THRESHOLDS="file", MERGE__THRESHOLD_FILE=file)
    refused(cfg, "thresholds.json cannot be read")
    file.write_text("{")
    refused(cfg, "thresholds.json is no JSON")
    file.write_text(json.dumps(dict.fromkeys(FIRST, 0.5)))
    refused(cfg, "has no threshold for 'triangle' of big")
    file.write_text(json.dumps({**dict.fromkeys(SHAPES, 0.5), "star": 0.04}))
    refused(cfg, "FLOOR is 0.05, but labels and ignore boxes begin at the score 0.04")
    file.write_text(json.dumps(dict.fromkeys(SHAPES, 0.5)))
    check_recipe(cfg)
    file.unlink()
    cfg.PSEUDO_LABEL.BASELINE = "labels"  # without pseudo labels
    check_recipe(cfg)


@pytest.mark.parametrize(
    "floor, threshold, t_ignore, least",
    [
        (0.6, 0.5, None, 0.3),  # all labels begin at the floor
        (0.31, 0.5, None, 0.3),
        (0.3, 0.5, None, None),
        (0.2, 0.5, 0.15, 0.15),
        (0.15, 0.5, 0.15, None),
        (0.05, 0.04, None, 0.04),
        (0.11, 0.2, None, 0.1),
    ],
)
def test_what_lies_below_the_floor_is_lost(floor, threshold, t_ignore, least, asked):
    scores = {"MERGE__THRESHOLD": threshold, "FILTER__T_IGNORE": t_ignore}
    cfg = asked(GENERATE__FLOOR=floor, **scores)
    if least is None:
        return check_recipe(cfg)
    refused(cfg, f"FLOOR is {floor}, but labels and ignore boxes begin at the score {least} ")


def test_the_floor_of_several_teachers(asked, big, folder):
    """T_IGNORE is on their common scale, where 0.5 is the threshold of each: 0.3 is 3/5 of it."""
    cfg = asked(MERGE__THRESHOLD=0.4, GENERATE__FLOOR=0.25)
    refused(cfg, "begin at the score 0.2 ")
    cfg.PSEUDO_LABEL.TEACHERS = [big, write_teacher(folder, "small")]
    refused(cfg, "begin at the score 0.24 ")
    cfg.PSEUDO_LABEL.GENERATE.FLOOR = 0.24
    check_recipe(cfg)


# ---- without teachers


@pytest.mark.parametrize(
    "key, value",
    [
        ("LABELS_DIR", "labels"),
        ("BASELINE", "joint"),
        ("LABELED", ["a"]),
        ("UNLABELED", ["a"]),
        ("PHASES", ["B"]),
    ],
)
def test_phases_without_teachers(key, value):
    cfg = get_kd_cfg()
    check_pseudo_label_config(cfg)
    cfg.PSEUDO_LABEL[key] = value
    with pytest.raises(ConfigError, match=f"TEACHERS is empty, so that PSEUDO_LABEL.{key} would"):
        check_pseudo_label_config(cfg)
    cfg.PSEUDO_LABEL.TEACHERS = ["a=a.yaml"]
    cfg.PSEUDO_LABEL.LABELED = ["a"]
    check_pseudo_label_config(cfg)


def test_values_are_checked_without_teachers():
    cfg = get_kd_cfg()
    cfg.PSEUDO_LABEL.W_MIN = 7
    with pytest.raises(ConfigError, match="W_MIN is 7"):
        check_pseudo_label_config(cfg)
