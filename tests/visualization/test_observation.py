"""What is shown of student and teacher, for every family and kind of teacher."""

import numpy as np
import pytest
import torch

from kd_d2.modeling import Stage, ViewRequest
from kd_d2.visualization.level_features import feature_tiles, level_features, run_both
from kd_d2.visualization.naming import ClassNames, distiller_class_names, shared_names
from kd_d2.visualization.observation import observe, rgb_image
from kd_d2.visualization.strip import Look, draw_strip, stack_strips

NAMES = ClassNames(["cat", "dog", "bird"])


def all_detections(cfg):
    """Untrained models are sure of nothing."""
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.0
    return cfg


def titles(shown):
    return {level: [tile.title for tile in tiles] for level, tiles in shown.tiles.items()}


@pytest.mark.parametrize("arch", ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN", "CascadeRCNN"])
def test_lgd_shows_everything(arch, lgd_cfg, build, random_batch):
    # FCOS's group norms need more than a single number in a group of its coarsest level
    cfg = lgd_cfg(arch, fpn_channels=64 if arch == "FCOS" else 32)
    model = build(all_detections(cfg)).eval()
    (x,) = random_batch(sizes=((70, 100),), objects=(3,), masks=arch == "MaskRCNN")
    shown = observe(model, x, "x.png", NAMES, threshold=0.0)
    # 70 pixels are 3 cells of 32: p5 and above show nothing
    rows = ["student", "adapted", "instructive"]
    dense = arch in ("RetinaNet", "FCOS")
    assert titles(shown) == dict.fromkeys(["p3", "p4"] if dense else ["p2", "p3", "p4"], rows)
    assert [t.pixels.shape for t in shown.tiles["p4"]] == [(5, 7, 3)] * 3
    assert all(t.caption.endswith(" %") for t in shown.tiles["p3"])
    assert shown.relations.rows == [None, 0, 1, 2]
    assert 5 < len(shown.student.boxes) <= 10 and 5 < len(shown.teacher.boxes) <= 10
    assert shown.notes == []
    np.testing.assert_allclose(shown.truth.boxes, x["instances"].gt_boxes.tensor)
    if arch == "MaskRCNN":
        assert shown.truth.masks.shape == (3, 70, 100) and shown.truth.masks.any((1, 2)).all()
        assert shown.student.masks.shape == (len(shown.student.boxes), 70, 100)
    strip = draw_strip(shown, Look(NAMES))
    assert strip.dtype == np.uint8 and strip.ndim == 3
    assert draw_strip(shown, Look(NAMES, "p4")).shape == strip.shape


def test_maps_end_where_the_image_does(lgd_cfg, build, random_batch):
    model = build(lgd_cfg()).eval()
    (x,) = random_batch(sizes=((70, 100),), objects=(1,))
    with torch.no_grad():
        student, teacher = run_both(model, x, [x["instances"]])
        levels = level_features(model, student, teacher)
    assert student.features["p3"].shape[-2:] == (12, 16)  # 96 x 128, padded
    torch.testing.assert_close(levels["p3"].student, student.features["p3"][0, :, :9, :13])
    torch.testing.assert_close(levels["p3"].teacher, teacher.features["p3"][0, :, :9, :13])
    adapter = model.heads["InstructiveFeatures"].distill
    torch.testing.assert_close(
        levels["p3"].compared, adapter(student.features["p3"])[0, :, :9, :13]
    )


def test_a_teacher_that_reads_labels_is_not_asked_without(lgd_cfg, build, random_batch):
    model = build(all_detections(lgd_cfg())).eval()
    (x,) = random_batch(sizes=((64, 64),), objects=(1,))
    del x["instances"]
    shown = observe(model, x, "x.png", NAMES, threshold=0.0)
    assert shown.truth is shown.teacher is shown.relations is None
    assert titles(shown) == {"p3": ["student"], "p4": ["student"]}
    assert len(shown.student.boxes)
    assert shown.notes == [
        "This teacher (LabelEncoder) reads the labels, and the image has none: only the student "
        "is shown."
    ]
    with_labels = observe(model, *random_batch(sizes=((64, 64),), objects=(2,)), "y", NAMES)
    strips = [draw_strip(s, Look(NAMES)) for s in (shown, with_labels)]
    assert strips[0].shape[1] < strips[1].shape[1]
    sheet = stack_strips(strips)
    assert sheet.shape == (sum(len(s) for s in strips) + 2, strips[1].shape[1], 3)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("student", "teacher", "adapter"),
    [
        ("RetinaNet", "RetinaNet", False),
        ("RetinaNet", "FasterRCNN", True),
        ("MaskRCNN", "RetinaNet", True),
    ],
)
def test_a_frozen_teacher_needs_no_labels(
    student, teacher, adapter, labelled, frozen_cfg, build, random_batch
):
    cfg = frozen_cfg(student, teacher, fpn_channels=16 if adapter else 32)
    cfg.MODEL.KD.PKD.ADAPTER = adapter
    model = build(all_detections(cfg)).eval()
    # as a head would that reads the teacher's losses
    model.teacher.request = request = ViewRequest(Stage.LOSSES)
    (x,) = random_batch(sizes=((96, 64),), objects=(2,), masks=student == "MaskRCNN")
    if not labelled:
        del x["instances"]
    shown = observe(model, x, "x.png", NAMES, threshold=0.0)
    assert model.teacher.request is request
    three = ["student", "adapted" if adapter else "compared", "teacher"]
    expected = {"p3": three, "p4": three}
    if student == "MaskRCNN":  # its p2 has no partner
        expected = {"p2": ["student"], **expected}
    assert titles(shown) == expected
    assert (shown.truth is None) == (not labelled)
    assert shown.teacher is not None and shown.relations is None
    assert shown.notes == [
        "This teacher (FrozenTeacher) relates no objects to each other as it is set up: there is "
        "no attention to show."
    ]
    draw_strip(shown, Look(NAMES))


def test_equal_features_look_equal_in_the_teachers_colours(frozen_cfg, build, random_batch):
    cfg = frozen_cfg()
    model = build(cfg).eval()
    model.student.load_state_dict(model.teacher.detector.state_dict())
    (x,) = random_batch(sizes=((64, 64),), objects=(2,))
    shown = observe(model, x, "x.png", NAMES)
    _, compared, teacher = shown.tiles["p3"]
    np.testing.assert_array_equal(compared.pixels, teacher.pixels)
    assert compared.caption == teacher.caption


def test_energies_are_maps_of_one_number(lgd_cfg, frozen_cfg, build, random_batch):
    (x,) = random_batch(sizes=((64, 64),), objects=(2,))
    shown = observe(build(lgd_cfg()).eval(), x, "x.png", NAMES, style="energy")
    assert titles(shown)["p3"] == ["student", "adapted", "instructive"]
    assert {t.pixels.shape for t in shown.tiles["p3"]} == {(8, 8)}
    # a second picture of the same energies would say nothing
    shown = observe(build(frozen_cfg()).eval(), x, "x.png", NAMES, style="energy")
    assert titles(shown)["p3"] == ["student", "teacher"]


def test_images_without_objects_and_tiny_images(lgd_cfg, build, random_batch):
    model = build(lgd_cfg()).eval()
    (empty,) = random_batch(sizes=((64, 64),), objects=(0,))
    shown = observe(model, empty, "empty.png", NAMES)
    assert len(shown.truth.boxes) == 0 and shown.relations.rows == [None]
    draw_strip(shown, Look(NAMES))
    tiny = {"image": torch.zeros(3, 20, 64, dtype=torch.uint8)}
    shown = observe(model, tiny, "tiny.png", NAMES)
    assert shown.tiles == {}
    assert shown.notes[-1] == "The image is too small: no level has 4 cells a side."
    draw_strip(shown, Look(NAMES))


def test_a_model_that_has_diverged_is_told(lgd_cfg, build, random_batch):
    model = build(lgd_cfg()).eval()
    (x,) = random_batch(sizes=((64, 64),), objects=(1,))
    with torch.no_grad():
        student, teacher = run_both(model, x, [x["instances"]])
        level = level_features(model, student, teacher)["p3"]
    level.teacher = level.teacher * float("inf")
    with pytest.raises(ValueError, match="not finite"):
        feature_tiles(level, "components", "teacher")


def test_images_are_shown_in_rgb():
    bgr = torch.zeros(3, 4, 5, dtype=torch.uint8)
    bgr[2] = 200
    assert rgb_image(bgr, "BGR")[0, 0].tolist() == [200, 0, 0]
    assert rgb_image(bgr, "RGB")[0, 0].tolist() == [0, 0, 200]


def test_the_teachers_classes_may_be_numbered_otherwise(frozen_cfg, build, random_batch):
    cfg = all_detections(frozen_cfg())
    cfg.MODEL.KD.TEACHER.CLASSES = ["sheep", "class 1", "class 0"]
    cfg.MODEL.KD.TEACHER.REQUIRE_SAME_CLASSES = False
    model = build(cfg).eval()
    names = distiller_class_names(cfg, model)
    assert names == shared_names([f"class {i}" for i in range(3)], cfg.MODEL.KD.TEACHER.CLASSES)
    assert names.names == ["class 0", "class 1", "class 2", "sheep"]
    (x,) = random_batch(sizes=((64, 64),), objects=(1,))
    raw = model.inference([x], teacher=True)[0]["instances"]
    raw = raw[raw.scores.argsort(descending=True)[:10]].pred_classes
    shown = observe(model, x, "x.png", names, threshold=0.0)
    assert shown.teacher.classes.tolist() == [[3, 1, 0][c] for c in raw]
