"""The picture of who learns what: the anchors that each network would choose, and those learned."""

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from matplotlib.figure import Figure
from tiny_models import build, random_batch, tiny_cfg

from kd_d2.modeling import Stage, ViewRequest
from kd_d2.visualization.detections import Boxes2D, class_color
from kd_d2.visualization.naming import ClassNames
from kd_d2.visualization.observation import observe
from kd_d2.visualization.page import PicturePage
from kd_d2.visualization.positives import Positives, draw_positives
from kd_d2.visualization.strip import Look, draw_strip

NAMES = ClassNames(["cat", "dog", "bird"])
TAUGHT = ["positive for the student", "for the teacher: learned"]
SHARED = ["positive for the student", "for the peer", "shared: learned"]


def lad(frozen_cfg, student="PAA", teacher="PAA"):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS, cfg.MODEL.KD.ASSIGN_BY = [], "teacher"
    return build(cfg).eval()


def colad():
    cfg = tiny_cfg("PAA")
    cfg.MODEL.KD.STUDENT, cfg.MODEL.KD.TEACHER.NAME = "PAA", "Peer"
    cfg.MODEL.META_ARCHITECTURE = "CoLearningDistiller"
    return build(cfg).eval()


def image(objects=3):
    return random_batch(sizes=((140, 200),), objects=(objects,))[0]


def expected(stages, x, labels=None):
    """Centres and classes by the network's own assignment, or by given labels."""
    view = stages.run([x], ViewRequest(Stage.ASSIGNMENT), [x["instances"]])
    (*_, own, _) = view.assignment
    labels = own[0] if labels is None else labels
    anchors = stages.detector.anchor_generator(list(view.features.values()))
    centres = torch.cat([a.get_centers() for a in anchors])
    chosen = (labels >= 0) & (labels < stages.num_classes)
    assert chosen.any()
    return centres[chosen].numpy(), labels[chosen].numpy()


@torch.no_grad()
@pytest.mark.parametrize("student, teacher", [("PAA", "PAA"), ("DDOD", "DDOD"), ("ATSS", "PAA")])
def test_the_student_s_own_and_the_teacher_s(student, teacher, frozen_cfg):
    model, x = lad(frozen_cfg, student, teacher), image()
    shown = observe(model, x, "x.png", NAMES, threshold=2.0).positives
    assert [p.title for p in shown] == TAUGHT
    for found, stages in zip(shown, (model.stages, model.teacher.stages), strict=True):
        centres, classes = expected(stages, x)
        np.testing.assert_array_equal(found.centres, centres)
        np.testing.assert_array_equal(found.classes, classes)
        assert (np.diff(found.levels) >= 0).all() and found.num_levels == 5


@torch.no_grad()
def test_two_networks_and_what_they_share():
    model, x = colad(), image()
    shown = observe(model, x, "x.png", NAMES, threshold=2.0)
    assert [p.title for p in shown.positives] == SHARED and shown.role == "peer"
    assert list(shown.tiles["p3"])[-1].title == "peer"
    views = [
        s.run([x], ViewRequest(Stage.PREDICTIONS)) for s in (model.stages, model.teacher.stages)
    ]
    shared, _ = model.share_labels(views, [x["instances"]])
    for found, stages, labels in zip(
        shown.positives,
        (model.stages, model.teacher.stages, model.stages),
        (None, None, shared[0]),
        strict=True,
    ):
        centres, classes = expected(stages, x, labels)
        np.testing.assert_array_equal(found.centres, centres)
        np.testing.assert_array_equal(found.classes, classes)


def test_the_picture_and_the_page(tmp_path):
    shown = observe(colad(), image(), "x.png", NAMES, threshold=2.0)
    with_dots = draw_strip(shown, Look(NAMES))
    page = PicturePage(tmp_path, Look(NAMES), "components")
    page.add(shown)
    page.write("title", "subtitle", [])
    text = (tmp_path / "index.html").read_text()
    assert "Whose anchors learn what" in text and "<th>peer</th>" in text
    shown.positives = []
    shown.image = np.zeros((140, 200, 3), np.uint8)
    assert with_dots.shape[1] - draw_strip(shown, Look(NAMES)).shape[1] > 3 * 2.7 * 100


def test_a_training_log_does_not_see_it(frozen_cfg):
    model = lad(frozen_cfg)
    with EventStorage() as storage:
        assert observe(model, image(), "x.png", NAMES).positives
    assert not storage.latest()


def test_nothing_to_show(frozen_cfg):
    x = image()
    assert observe(build(frozen_cfg("PAA", "PAA")).eval(), x, "x.png", NAMES).positives == []
    del x["instances"]
    assert observe(lad(frozen_cfg), x, "x.png", NAMES).positives == []
    nobody = observe(lad(frozen_cfg), image(0), "x.png", NAMES)
    assert [len(p.centres) for p in nobody.positives] == [0, 0]
    draw_strip(nobody, Look(NAMES))


def test_dots_are_coloured_by_class_and_grow_with_the_level():
    axes = Figure().add_subplot()
    truth = Boxes2D(np.array([[2.0, 2, 8, 8]]), np.array([1]), np.ones(1))
    dots = Positives("by hand", np.array([[3.0, 4], [5, 6]]), np.array([1, 0]), np.array([0, 2]), 3)
    draw_positives(axes, np.zeros((10, 12, 3), np.uint8), truth, dots, 3)
    (found,) = axes.collections
    assert found.get_offsets().tolist() == [[5, 6], [3, 4]]  # the coarse one below
    assert found.get_sizes().tolist() == [81.0, 9.0]
    colors = Figure().add_subplot().scatter([0, 0], [0, 0], c=[class_color(c, 3) for c in (0, 1)])
    np.testing.assert_array_equal(found.get_facecolor(), colors.get_facecolor())
    assert len(axes.patches) == 1
