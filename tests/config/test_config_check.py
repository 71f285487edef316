"""Every mistake in a config is one clear sentence."""

from collections import Counter

import pytest
from detectron2.data import MetadataCatalog

from kd_d2.config.check import check_config
from kd_d2.config.frozen_teacher import class_map, teacher_class_map
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import student_config
from kd_d2.config.teacher import load_teacher_cfg
from kd_d2.registry import NamedRegistry


def test_a_good_config_passes(lgd_cfg, tiny_cfg):
    check_config(lgd_cfg())
    check_config(tiny_cfg("FasterRCNN"))


MISTAKES = [
    ("MODEL.KD.STUDENT", "", "MODEL.KD.STUDENT is empty"),
    ("MODEL.KD.STUDENT", "RetinaNt", "Unknown student .*did you mean 'RetinaNet'.*GeneralizedRCNN"),
    ("MODEL.KD.STUDENT", "LabelGuidedDistiller", "must be a detector"),
    ("MODEL.META_ARCHITECTURE", "LabelGuidedDistiler", "did you mean 'LabelGuidedDistiller'"),
    ("MODEL.KD.TEACHER.NAME", "", "TEACHER.NAME is empty.*Frozen, LabelEncoder"),
    ("MODEL.KD.TEACHER.NAME", "LabelEncodr", "did you mean 'LabelEncoder'"),
    ("MODEL.KD.TEACHER.NAME", "Frozen", "works in a FrozenTeacherDistiller"),
    ("MODEL.KD.HEADS", ["PDK"], "Unknown distillation head .*did you mean 'PKD'"),
    ("MODEL.KD.HEADS", "PKD", r'must be a list, e.g. \["PKD"\]'),
    ("MODEL.KD.HEADS", ["PKD", "PKD"], "names PKD more than once"),
    ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon", "did you mean 'build_resnet_fpn_backbone'"),
    ("MODEL.RESNETS.DEPTH", 20, "DEPTH is 20; it must be one of 18, 34, 50"),
    ("SOLVER.BASE_LR", -0.1, "SOLVER.BASE_LR is -0.1"),
    ("SOLVER.TEACHER.BASE_LR", "fast", "SOLVER.TEACHER.BASE_LR is 'fast'; it must be a number"),
    ("MODEL.KD.FREEZE_BACKBONE", -1, "MODEL.KD.FREEZE_BACKBONE: A phase length"),
    ("MODEL.KD.FREEZE_BACKBONE", 1.5, "must be whole"),
    ("MODEL.KD.LGD.ENCODER", "PointNett", "PointNet"),
    ("MODEL.KD.LGD.INTERACT_PATTERN", "stuGuide", "stuGuided"),
    ("SOLVER.OPTIMIZER", "Adam", "SGD, AdamW"),
    ("SOLVER.AMP.DTYPE", "half", "float16, bfloat16"),
    ("SOLVER.MAX_ITER", 0, "at least 1"),
    ("DATALOADER.ON_BAD_IMAGE", "ignore", "raise, skip"),
    ("MODEL.KD.HEADS", [1], r'must hold names, e.g. \["PKD"\], and has 1'),
    ("MODEL.KD.HEADS", [["PKD"]], "must hold names"),
    ("MODEL.KD.HEADS", None, "must be a list"),
    ("MODEL.KD.FREEZE_BACKBONE", float("inf"), "FREEZE_BACKBONE is inf; it must be finite"),
    ("MODEL.KD.FREEZE_BACKBONE", float("nan"), "FREEZE_BACKBONE: "),
    ("MODEL.KD.STUDENT", "GeneralizedRCNN", "MODEL.RPN.IN_FEATURES of a GeneralizedRCNN"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchor", "did you mean 'DefaultAnchorGenerator'"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", r"MIN_SIZE_TRAIN is \(64,\); with .* range it must"),
]


@pytest.mark.parametrize("key,value,message", MISTAKES)
def test_mistakes(key, value, message, lgd_cfg):
    cfg = lgd_cfg()
    *path, leaf = key.split(".")
    node = cfg
    for name in path:
        node = node[name]
    node[leaf] = value
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_a_student_is_no_distiller(lgd_cfg):
    cfg = lgd_cfg()
    cfg.MODEL.KD.STUDENT = "RetinaNt"
    with pytest.raises(ConfigError) as error:
        check_config(cfg)
    assert "FCOS" in str(error.value) and "Distiller" not in str(error.value)


def test_a_cosine_schedule_divides_by_the_rate(tiny_cfg):
    cfg = tiny_cfg()
    cfg.SOLVER.BASE_LR = 0.0
    check_config(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    with pytest.raises(ConfigError, match="SOLVER.BASE_LR must be above 0"):
        check_config(cfg)


def test_what_is_hardly_meant_is_told_once(lgd_cfg, caplog):
    cfg = lgd_cfg()
    cfg.SOLVER.MAX_ITER, cfg.MODEL.KD.FREEZE_BACKBONE = 77, 78
    cfg.MODEL.KD.HEADS = []
    for _ in range(2):
        check_config(cfg)
    freezing, heads = (record.getMessage() for record in caplog.records)
    assert "for 78 iterations, and there are 77" in freezing
    assert "MODEL.KD.HEADS is empty" in heads


def frozen(cfg, **teacher):
    cfg.MODEL.META_ARCHITECTURE = "FrozenTeacherDistiller"
    cfg.MODEL.KD.HEADS = ["PKD"]
    cfg.MODEL.KD.TEACHER.NAME = "Frozen"
    for key, value in teacher.items():
        cfg.MODEL.KD.TEACHER[key] = value
    return cfg


ZOO = "COCO-Detection/retinanet_R_101_FPN_3x.yaml"


def test_zoo_teacher_needs_no_weights_key(lgd_cfg):
    check_config(frozen(lgd_cfg(), CONFIG_FILE=ZOO))


def test_missing_teacher_config(lgd_cfg):
    with pytest.raises(ConfigError, match="CONFIG_FILE is empty"):
        check_config(frozen(lgd_cfg()))
    with pytest.raises(FileNotFoundError, match="retinanet_R_101_FPN_3x"):
        check_config(frozen(lgd_cfg(), CONFIG_FILE="COCO-Detection/retinanet_R_101_FPN_3"))


def test_a_frozen_teacher_without_a_head_teaches_nothing(lgd_cfg):
    cfg = frozen(lgd_cfg(), CONFIG_FILE=ZOO)
    cfg.MODEL.KD.HEADS = []
    with pytest.raises(ConfigError, match="HEADS is empty.*InstructiveFeatures.*PKD"):
        check_config(cfg)


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: [", "no valid YAML"),
        ("MODEL: {RETINANET: {NUM_CONV: 3}}", "did you mean .*MODEL.RETINANET.NUM_CONVS"),
        ("MODEL: {WEIGHTS: !!python/object/apply:os.getcwd []}", "has a Python tag"),
        ("MODEL: {META_ARCHITECTURE: RetinaNett}", "teacher's config .*did you mean 'RetinaNet'"),
        ("MODEL: {BACKBONE: {NAME: build_vgg}}", "The teacher's config .*Unknown backbone"),
        ("MODEL: {RPN: {IN_FEATURES: [p9]}}", "The teacher.s config .*: MODEL.RPN.IN_FEATURES"),
        ("MODEL: {FPN: {OUT_CHANNELS: 0}}", "The teacher.s config .*: MODEL.FPN.OUT_CHANNELS is 0"),
    ],
)
def test_teacher_configs_that_cannot_be_read(text, message, lgd_cfg, tmp_path):
    (tmp_path / "teacher.yaml").write_text(text)
    (tmp_path / "teacher.pth").touch()
    files = {"CONFIG_FILE": tmp_path / "teacher.yaml", "WEIGHTS": tmp_path / "teacher.pth"}
    with pytest.raises(ValueError, match=message):
        check_config(frozen(lgd_cfg(), **{k: str(v) for k, v in files.items()}))


def test_missing_teacher_weights(lgd_cfg, tmp_path, tiny_cfg):
    path = tmp_path / "teacher.yaml"
    path.write_text(tiny_cfg().dump())
    with pytest.raises(ConfigError, match="WEIGHTS is empty"):
        check_config(frozen(lgd_cfg(), CONFIG_FILE=str(path)))
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        check_config(frozen(lgd_cfg(), CONFIG_FILE=str(path), WEIGHTS="nowhere.pth"))
    untrained = {"CONFIG_FILE": str(path), "WEIGHTS": "output/model_final.pth"}
    with pytest.raises(FileNotFoundError, match=r"training makes it: python .*teacher\.yaml$"):
        check_config(frozen(lgd_cfg(), **untrained))


def test_class_lists_agree_or_are_mapped_by_name(lgd_cfg):
    MetadataCatalog.get("three_things").thing_classes = ["cat", "dog", "kd_d2 mug"]
    cfg = frozen(lgd_cfg(), CONFIG_FILE=ZOO)
    cfg.DATASETS.TRAIN = ("three_things",)
    with pytest.raises(ConfigError, match=r"does not know 1 of the student's 3 .*kd_d2 mug"):
        check_config(cfg)
    cfg.MODEL.KD.TEACHER.REQUIRE_SAME_CLASSES = False
    check_config(cfg)
    cfg.MODEL.KD.TEACHER.REQUIRE_SAME_CLASSES = True
    cfg.MODEL.KD.TEACHER.CLASSES = ["kd_d2 mug", "dog", "cat", "bird"]
    with pytest.raises(ConfigError, match="CLASSES has 4 names, but the teacher has 80 classes"):
        check_config(cfg)
    cfg.MODEL.KD.TEACHER.CLASSES += [f"thing {i}" for i in range(76)]
    check_config(cfg)
    assert class_map(["cat", "dog"], cfg.MODEL.KD.TEACHER.CLASSES) == [2, 1]


@pytest.mark.parametrize(
    "key, value, reader",
    [
        ("HEADS", ["PKD", "SoftLabel"], "SoftLabel"),
        ("HEADS", ["DKD"], "DKD"),
        ("INHERIT", ["neck", "head"], "INHERIT head"),
        ("ASSIGN_BY", "teacher", "ASSIGN_BY teacher"),
    ],
)
def test_what_compares_classes_needs_a_teacher_that_knows_them(key, value, reader, lgd_cfg):
    MetadataCatalog.get("three_things").thing_classes = ["cat", "dog", "kd_d2 mug"]
    cfg = frozen(lgd_cfg(), CONFIG_FILE=ZOO, REQUIRE_SAME_CLASSES=False)
    cfg.DATASETS.TRAIN = ("three_things",)
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.INHERIT = ["PKD", "CWD"], ["neck"]
    check_config(cfg)
    cfg.MODEL.KD[key] = value
    with pytest.raises(ConfigError, match=f"^{reader} .MODEL.KD. needs a teacher.*kd_d2 mug"):
        check_config(cfg)


def test_known_classes_are_mapped_though_they_need_not_be(lgd_cfg):
    MetadataCatalog.get("two_coco_things").thing_classes = ["bicycle", "person"]
    cfg = frozen(lgd_cfg(), CONFIG_FILE=ZOO, REQUIRE_SAME_CLASSES=False)
    cfg.DATASETS.TRAIN = ("two_coco_things",)
    assert teacher_class_map(cfg, load_teacher_cfg(cfg)) == [1, 0]


def test_classes_without_names_are_compared_by_number_with_a_warning(lgd_cfg, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())  # of other tests
    cfg = frozen(lgd_cfg(), CONFIG_FILE=ZOO)
    cfg.DATASETS.TRAIN = ("nameless_things",)
    with caplog.at_level("WARNING"):
        check_config(cfg)
    assert "have no names yet" in caplog.text


def test_image_formats_that_cannot_be_brought_together(lgd_cfg):
    cfg = frozen(lgd_cfg(), CONFIG_FILE=ZOO)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ConfigError, match="INPUT.FORMAT is L, and BGR in the teacher's config"):
        check_config(cfg)


def test_a_detector_with_losses_that_stages_do_not_know_is_no_student(tiny_cfg, lgd_cfg):
    cfg = lgd_cfg("MaskRCNN")
    cfg.MODEL.KD.STUDENT = "PanopticFPN"
    with pytest.raises(ConfigError, match=r"a forward pass of its own .*register_stages\(Panoptic"):
        check_config(cfg)


@pytest.mark.parametrize(
    "proposals,words", [("PrecomputedProposals", "must make its own"), ("RRPN", "rotated")]
)
def test_proposals_that_do_not_serve(proposals, words, lgd_cfg):
    cfg = lgd_cfg("FasterRCNN")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = proposals
    with pytest.raises(ConfigError, match=words):
        check_config(cfg)


def test_switched_off_needs_no_teacher(lgd_cfg):
    cfg = frozen(lgd_cfg())
    cfg.MODEL.KD.ENABLED = False
    check_config(cfg)


def test_student_config_is_a_copy(lgd_cfg):
    cfg = lgd_cfg()
    cfg.freeze()
    student = student_config(cfg)
    assert student.MODEL.META_ARCHITECTURE == "RetinaNet" and student.is_frozen()
    assert cfg.MODEL.META_ARCHITECTURE == "LabelGuidedDistiller"


def test_registry_miss_lists_the_known_and_the_nearest():
    registry = NamedRegistry("THINGS", "thing")
    registry.register("Alpha")(int)
    registry.register("Beta")(int)
    with pytest.raises(KeyError, match=r"Unknown thing 'Alpa': did you mean 'Alpha'\? Known are A"):
        registry.get("Alpa")
    assert registry.get("Beta") is int
