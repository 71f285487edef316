"""What a file has for each class goes to the class of that name, in every family of detectors."""

import logging
from collections import OrderedDict

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from tiny_models import DENSE, build, lgd_cfg, tiny_cfg

from kd_d2.checkpoint import CheckpointError, ClassLists, KDCheckpointer

FILE = ["cat", "dog", "cow"]
NEW = -1.0  # a row as the model has it
SHARED = 77.0  # of the file, for all classes
BACKGROUND = 99.0

LISTS = {
    "same": ["cat", "dog", "cow"],
    "permuted": ["cow", "cat", "dog"],
    "subset": ["cow", "cat"],
    "one": ["dog"],
    "superset": ["owl", "cow", "cat", "emu", "dog"],
    "partly": ["owl", "dog", "emu"],
}
lists = pytest.mark.parametrize("own", LISTS.values(), ids=LISTS)
FAMILIES = (*DENSE, "FasterRCNN", "MaskRCNN", "CascadeRCNN")
# Written by hand: name -> how its rows are laid out
_ROWS = {
    "head.cls_score": "anchors",
    "head.center_prior": "classes",
    "roi_heads.box_predictor.cls_score": "background",
    "roi_heads.box_predictor.0.cls_score": "background",
    "roi_heads.box_predictor.1.cls_score": "background",
    "roi_heads.box_predictor.2.cls_score": "background",
    "roi_heads.box_predictor.bbox_pred": "boxes",
    "roi_heads.mask_head.predictor": "classes",
}


def cfg_of(arch, classes, **keys):
    cfg = tiny_cfg(arch)
    node = cfg.MODEL[arch.upper()] if arch in DENSE else cfg.MODEL.ROI_HEADS
    node.NUM_CLASSES = len(classes)
    cfg.merge_from_list([x for item in keys.items() for x in item])
    return cfg


def numbers_of(name, value, values):
    """One number for each row of a layer; ``values`` has one for each class.

    All rows of layers that are not in the table, and of those that the classes share, are SHARED.
    """
    kind, count = _ROWS.get(name.rpartition(".")[0]), len(values)
    if kind == "anchors":
        return [values[i % count] for i in range(len(value))]
    if kind == "background":
        return [*values, BACKGROUND]
    if kind == "boxes" and len(value) == 4 * count:
        return [x for x in values for _ in range(4)]
    if kind == "classes" and len(value) == count:
        return list(values)
    return [SHARED] * len(value)


def fill(state, values, prefix=""):
    """Gives each row of each weight a number, in place."""
    with torch.no_grad():
        for name, value in state.items():
            if name.startswith(prefix) and value.dim():
                for row, number in zip(
                    value, numbers_of(name.removeprefix(prefix), value, values), strict=True
                ):
                    row.fill_(number)


def expected(state, own, prefix=""):
    """As :func:`fill` with the number of each class in the file, or NEW."""
    values = [float(FILE.index(name)) if name in FILE else NEW for name in own]
    copy = OrderedDict((name, value.clone()) for name, value in state.items())
    fill(copy, values, prefix)
    return copy


def detector_file(folder, arch, prefix="", **keys):
    """A file with k in each row of class k, SHARED and BACKGROUND elsewhere."""
    state = build(cfg_of(arch, FILE, **keys)).state_dict()
    fill(state, [0.0, 1.0, 2.0])
    torch.save({"model": {prefix + name: value for name, value in state.items()}}, folder / "f.pth")
    return str(folder / "f.pth")


def filled_with_new(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(NEW)
    return model


def assert_equal(state, wanted):
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        assert torch.equal(value, wanted[name]), name


@lists
@pytest.mark.parametrize("arch", FAMILIES)
def test_rows_go_to_their_names(arch, own, tmp_path, caplog):
    file = detector_file(tmp_path, arch)
    model = filled_with_new(build(cfg_of(arch, own)))
    wanted = expected(model.state_dict(), own)
    caplog.set_level(logging.INFO)
    KDCheckpointer(model).load(file, classes=ClassLists(FILE, own))
    assert_equal(model.state_dict(), wanted)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    (line,) = [r.getMessage() for r in caplog.records if "by their names" in r.getMessage()]
    copied, _, new = line.partition("these begin anew: ")
    assert copied.endswith(f"names: {', '.join(x for x in own if x in FILE)}; ")
    assert new == (", ".join(x for x in own if x not in FILE) or "none") + "."


@lists
def test_anchors_of_a_retinanet(own, tmp_path):
    """The channel of anchor a and class k is a K + k: against Detectron2's own view of them."""
    file = detector_file(tmp_path, "RetinaNet")
    model = build(cfg_of("RetinaNet", own))
    KDCheckpointer(model).load(file, classes=ClassLists(FILE, own))
    bias = model.head.cls_score.bias.detach()
    cells = permute_to_N_HWA_K(bias[None, :, None, None], len(own))[0]  # (A, K)
    assert len(cells) == 6  # two sizes, three shapes
    fresh = cells[0, 0] if own[0] not in FILE else None
    for k, name in enumerate(own):
        number = FILE.index(name) if name in FILE else fresh
        assert (cells[:, k] == number).all(), name


@lists
@pytest.mark.parametrize(
    "arch, key",
    [
        ("FasterRCNN", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
        ("MaskRCNN", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"),
    ],
)
def test_what_all_classes_share_is_taken_as_it_is(arch, key, own, tmp_path, caplog):
    """Also where as many classes as rows would make it look otherwise."""
    file = detector_file(tmp_path, arch, **{key: True})
    for names in (own, [*own, *"abcdef"][:4]):  # four classes, and four rows of a box
        model = filled_with_new(build(cfg_of(arch, names, **{key: True})))
        KDCheckpointer(model).load(file, classes=ClassLists(FILE, names))
        heads = model.roi_heads
        layer = heads.mask_head.predictor if "MASK" in key else heads.box_predictor.bbox_pred
        assert (layer.weight == SHARED).all() and (layer.bias == SHARED).all()
        rows = [float(FILE.index(x)) if x in FILE else NEW for x in names]
        assert heads.box_predictor.cls_score.bias.tolist() == [*rows, BACKGROUND]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text


def test_four_shared_box_rows_of_four_classes_are_not_permuted(tmp_path):
    key = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
    names = ["a", "b", "c", "d"]
    state = build(cfg_of("FasterRCNN", names, **key)).state_dict()
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(4.0)
    torch.save({"model": state}, tmp_path / "f.pth")
    model = build(cfg_of("FasterRCNN", names, **key))
    KDCheckpointer(model).load(str(tmp_path / "f.pth"), classes=ClassLists(names, names[::-1]))
    assert model.roi_heads.box_predictor.bbox_pred.bias.tolist() == [0, 1, 2, 3]


def test_new_rows_are_the_models_own(tmp_path):
    model = build(cfg_of("FCOS", LISTS["partly"]))
    before = {name: value.clone() for name, value in model.head.cls_score.state_dict().items()}
    lists = ClassLists(FILE, LISTS["partly"])
    KDCheckpointer(model).load(detector_file(tmp_path, "FCOS"), classes=lists)
    for name, value in model.head.cls_score.state_dict().items():
        assert torch.equal(value[[0, 2]], before[name][[0, 2]])
        assert (value[1] == 1).all()


@pytest.mark.parametrize("own", [LISTS["permuted"], LISTS["partly"]])
@pytest.mark.parametrize("prefix", ["", "student.", "module.student."])
@pytest.mark.parametrize("arch", ["RetinaNet", "MaskRCNN"])
def test_within_a_distiller(arch, own, prefix, tmp_path, caplog):
    cfg = lgd_cfg(arch)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(own)
    model = filled_with_new(build(cfg))
    wanted = expected(model.student.state_dict(), own)
    file = detector_file(tmp_path, arch, prefix=prefix)
    KDCheckpointer(model).load(file, classes=ClassLists(FILE, own))
    assert_equal(model.student.state_dict(), wanted)
    assert all((p == NEW).all() for part in (model.teacher, model.heads) for p in part.parameters())
    assert "shape" not in caplog.text


def test_a_label_encoder_and_heads_begin_anew(tmp_path):
    """It reads classes by their numbers, in matrices without a row for each."""
    model = build(lgd_cfg())
    fill(model.state_dict(), [0.0, 1.0, 2.0], "student.")
    torch.save({"model": model.state_dict()}, tmp_path / "f.pth")
    model = filled_with_new(build(lgd_cfg()))
    wanted = expected(model.student.state_dict(), LISTS["permuted"])
    checkpointer = KDCheckpointer(model)
    checkpointer.load(str(tmp_path / "f.pth"), classes=ClassLists(FILE, LISTS["permuted"]))
    assert_equal(model.student.state_dict(), wanted)
    filled = {part: n for part, (n, _) in checkpointer.loaded_parts.items()}
    assert filled["student"] and not filled["teacher"] and not filled["heads"]
    assert all((p == NEW).all() for part in (model.teacher, model.heads) for p in part.parameters())


def peer_cfg(classes):
    cfg = cfg_of("PAA", classes)
    cfg.MODEL.KD.STUDENT = "PAA"
    cfg.MODEL.META_ARCHITECTURE = "CoLearningDistiller"
    cfg.MODEL.KD.TEACHER.NAME = "Peer"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[64], [128], [256], [512], [1024]]
    return cfg


@lists
def test_a_peer_and_its_own_file(own, tmp_path):
    model = build(peer_cfg(FILE))
    fill(model.state_dict(), [0.0, 1.0, 2.0], "student.")
    fill(model.state_dict(), [0.0, 1.0, 2.0], "teacher.detector.")
    whole, plain = str(tmp_path / "whole.pth"), str(tmp_path / "plain.pth")
    torch.save({"model": model.state_dict()}, whole)
    torch.save({"model": model.student.state_dict()}, plain)

    model = filled_with_new(build(peer_cfg(own)))
    wanted = expected(model.student.state_dict(), own)
    KDCheckpointer(model).load(whole, classes=ClassLists(FILE, own))
    assert_equal(model.student.state_dict(), wanted)
    assert_equal(model.teacher.detector.state_dict(), wanted)

    as_student, of_its_own = peer_cfg(own), peer_cfg(own)
    as_student.MODEL.WEIGHTS, as_student.MODEL.WEIGHTS_CLASSES = plain, FILE
    of_its_own.MODEL.WEIGHTS_CLASSES = ["of", "another", "file"]
    of_its_own.MODEL.KD.TEACHER.WEIGHTS, of_its_own.MODEL.KD.TEACHER.CLASSES = plain, FILE
    for cfg in (as_student, of_its_own):
        model = filled_with_new(build(cfg))
        model.teacher.load_initial_weights(own)
        assert_equal(model.teacher.detector.state_dict(), wanted)
        assert all((p == NEW).all() for p in model.student.parameters())


def test_counts_of_the_data_stay_the_models_own(tmp_path, caplog):
    """Detectron2's federated loss keeps how often each class occurs, as a buffer."""
    name = "roi_heads.box_predictor.fed_loss_cls_weights"
    for own in (LISTS["permuted"], LISTS["superset"]):
        state = build(cfg_of("FasterRCNN", FILE)).state_dict()
        torch.save({"model": {**state, name: torch.arange(3.0)}}, tmp_path / "f.pth")
        model = build(cfg_of("FasterRCNN", own))
        counts = torch.full((len(own),), 5.0)
        model.roi_heads.box_predictor.register_buffer("fed_loss_cls_weights", counts.clone())
        KDCheckpointer(model).load(str(tmp_path / "f.pth"), classes=ClassLists(FILE, own))
        assert torch.equal(model.state_dict()[name], counts)
    assert "shape" not in caplog.text


@lists
def test_names_of_another_framework(own, tmp_path, caplog):
    """Files whose names are matched by their ends are matched with the file's number of classes."""
    file = detector_file(tmp_path, "MaskRCNN")
    data = torch.load(file)
    short = {name.removeprefix("roi_heads."): value for name, value in data["model"].items()}
    torch.save({"model": short, "matching_heuristics": True}, file)
    for cfg in (cfg_of("MaskRCNN", own), lgd_cfg("MaskRCNN")):
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(own)
        model = filled_with_new(build(cfg))
        detector = getattr(model, "student", model)
        wanted = expected(detector.state_dict(), own)
        KDCheckpointer(model).load(file, classes=ClassLists(FILE, own))
        assert_equal(detector.state_dict(), wanted)
    assert "shape" not in caplog.text.lower()


def test_without_names_of_the_file_nothing_changes(tmp_path):
    file = detector_file(tmp_path, "FCOS")
    for classes in (None, ClassLists([], LISTS["permuted"]), ClassLists([], [])):
        model = build(cfg_of("FCOS", FILE))
        KDCheckpointer(model).load(file, classes=classes)
        assert model.head.cls_score.bias.tolist() == [0, 1, 2]


def test_a_resumed_run_has_its_own_order(tmp_path):
    for i, value in enumerate((3.0, 4.0)):
        model = build(cfg_of("FCOS", FILE))
        fill(model.state_dict(), [value] * 3)
        KDCheckpointer(model, str(tmp_path)).save(f"model_{i:07d}")
    (tmp_path / "start").mkdir()
    file = detector_file(tmp_path / "start", "FCOS")
    lists = ClassLists(FILE, LISTS["permuted"])
    for resume, bias in ((True, [4, 4, 4]), (False, [2, 0, 1])):
        model = build(cfg_of("FCOS", FILE))
        KDCheckpointer(model, str(tmp_path)).resume_or_load(file, resume=resume, classes=lists)
        assert model.head.cls_score.bias.tolist() == bias
    # names that would be refused are not looked at
    checkpointer = KDCheckpointer(build(cfg_of("FCOS", FILE)), str(tmp_path))
    checkpointer.resume_or_load(file, resume=True, classes=ClassLists(["a", "a"], []))


@pytest.mark.parametrize(
    "file, own, words",
    [
        (["cat", "dog", "cat"], FILE, r"MODEL.WEIGHTS_CLASSES has the class cat more than once"),
        (FILE, ["cat", "cat", "x"], r"The training data set has the class cat more than once"),
        (["a", "b", "c"], FILE, r"\(a, b, c\) and the training data \(cat, dog, cow\) have no cla"),
        (FILE, [], r"DATASETS.TRAIN does not name its classes"),
        (["cat", "dog"], FILE, r"2 names, .*weight would be of shape \(2, 32, 3, 3\), .*\(3, 32, "),
        ([*FILE, "x"], FILE, r"4 names, .*f.pth': name each of its classes in the order"),
    ],
)
def test_lists_that_cannot_be_right(file, own, words, tmp_path):
    model = build(cfg_of("FCOS", FILE))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as told:
        path = detector_file(tmp_path, "FCOS")
        KDCheckpointer(model).load(path, classes=ClassLists(file, own))
    assert "\n" not in str(told.value) and str(told.value).endswith(".")
    assert_equal(model.state_dict(), before)


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN"])
def test_a_backbone_or_nothing_has_no_classes(arch, tmp_path):
    lists = ClassLists(FILE, FILE)
    model = build(cfg_of(arch, FILE))
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    short = {k.removeprefix("backbone.bottom_up."): v for k, v in backbone.items()}
    for data in (
        {"model": backbone},
        {"model": short | {"fc.weight": torch.ones(9, 4)}, "matching_heuristics": True},
    ):
        torch.save(data, tmp_path / "f.pth")
        with pytest.raises(
            CheckpointError, match="f.pth' has no classes to copy .*WEIGHTS_CLASSES"
        ):
            KDCheckpointer(model).load(str(tmp_path / "f.pth"), classes=lists)
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty, and MODEL.WEIGHTS_CLASSES"):
        KDCheckpointer(model).load("", classes=lists)


def test_layers_that_nobody_knows_are_refused(tmp_path):
    other_predictor = build(cfg_of("FasterRCNN", FILE))
    heads = other_predictor.roi_heads
    heads.classifier, heads.box_predictor = heads.box_predictor, torch.nn.Identity()
    other_mask_head = build(cfg_of("MaskRCNN", FILE))
    head = other_mask_head.roi_heads.mask_head
    head.coarse, head.predictor = head.predictor, torch.nn.Identity()
    panoptic = build(cfg_of("MaskRCNN", FILE))
    panoptic.sem_seg_head = torch.nn.Linear(2, 2)
    one_more_row = build(cfg_of("FCOS", FILE))
    one_more_row.head.cls_score = torch.nn.Conv2d(32, 4, 3)
    for model, words in (
        (other_predictor, "no head.cls_score and no box_predictor"),
        (other_mask_head, r"has roi_heads.mask_head.\*"),
        (panoptic, r"has sem_seg_head.\*"),
        (one_more_row, r"has head.cls_score.weight\*"),
    ):
        torch.save({"model": model.state_dict()}, tmp_path / "f.pth")
        with pytest.raises(CheckpointError, match=f"cannot be used with .*{words}"):
            lists = ClassLists(FILE, FILE)
            KDCheckpointer(model).load(str(tmp_path / "f.pth"), classes=lists)


def test_a_detector_of_another_kind_is_refused(tmp_path):
    file = detector_file(tmp_path, "RetinaNet")  # six anchors a cell
    with pytest.raises(CheckpointError, match="give a config of the same detector"):
        KDCheckpointer(build(cfg_of("ATSS", FILE))).load(file, classes=ClassLists(FILE, FILE))
    narrow = tiny_cfg("ATSS", fpn_channels=64)
    with pytest.raises(CheckpointError, match=r"would be of shape \(3, 64, 3, 3\), .*\(3, 32, 3,"):
        file = detector_file(tmp_path, "ATSS")
        KDCheckpointer(build(narrow)).load(file, classes=ClassLists(FILE, FILE))


def test_shared_boxes_for_boxes_of_each_class_are_told_as_ever(tmp_path, caplog):
    key = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}
    for given, own in ((key, {}), ({}, key)):
        caplog.clear()
        model = filled_with_new(build(cfg_of("FasterRCNN", LISTS["superset"], **own)))
        file = detector_file(tmp_path, "FasterRCNN", **given)
        KDCheckpointer(model).load(file, classes=ClassLists(FILE, LISTS["superset"]))
        assert (model.roi_heads.box_predictor.bbox_pred.weight == NEW).all()
        assert "bbox_pred" in caplog.text and "cls_score" not in caplog.text
