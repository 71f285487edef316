"""The picture of levels: which of the student's match the teacher's feature of an object."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny_models import build, random_batch

from kd_d2.modeling.regions import Regions
from kd_d2.visualization.level_matches import LevelMatches, draw_level_matches
from kd_d2.visualization.naming import ClassNames
from kd_d2.visualization.observation import observe
from kd_d2.visualization.strip import Look, draw_strip

NAMES = ClassNames(["cat", "dog", "bird"])


def model_of(frozen_cfg, student, teacher="FasterRCNN", heads=("CKD", "SGFI"), **sgfi):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = list(heads)
    for key, value in sgfi.items():
        cfg.MODEL.KD.SGFI[key] = value
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return build(cfg).eval()


@pytest.mark.parametrize("student", ["RetinaNet", "FasterRCNN"])
def test_the_weights_are_those_of_training(student, frozen_cfg):
    model = model_of(frozen_cfg, student, TEMPERATURE=50.0)
    (x,) = random_batch(sizes=((70, 100),), objects=(3,))
    shown = observe(model, x, "x.png", NAMES, threshold=0.0)
    matches = shown.matches
    assert matches.of_truth and matches.objects == [0, 1, 2]
    assert matches.levels == list(model.stages.feature_shapes)
    np.testing.assert_allclose(matches.weights.sum(1), 1, rtol=1e-5)
    # small objects are the teacher's P2, which a dense detector has not
    assert matches.teacher.tolist() == ([-1] * 3 if student == "RetinaNet" else [0] * 3)
    sgfi = model.heads["SGFI"]
    with torch.no_grad():
        view = model.stages.run([x], sgfi.student_request)
        pooled = model.teacher.detector.roi_heads.box_pooler(
            [
                model.teacher.detector.backbone(view.images.tensor)[f]
                for f in ("p2", "p3", "p4", "p5")
            ],
            [x["instances"].gt_boxes],
        )
        boxes = x["instances"].gt_boxes.tensor
        regions = Regions(boxes, [3], torch.ones(3, dtype=torch.bool))
        _, weights = sgfi.compare(view, regions, pooled)
    np.testing.assert_allclose(matches.weights, weights, atol=1e-5)
    wider = draw_strip(shown, Look(NAMES)).shape[1]
    shown.matches = None
    assert draw_strip(shown, Look(NAMES)).shape[1] > wider - 500 and wider > 0


def test_chosen_objects_and_detections(frozen_cfg):
    model = model_of(frozen_cfg, "RetinaNet")
    (x,) = random_batch(sizes=((70, 100),), objects=(3,))
    shown = observe(model, x, "x.png", NAMES, threshold=0.0, objects=[2, 7])
    assert shown.matches.objects == [2] and shown.matches.weights.shape == (1, 5)
    del x["instances"]
    shown = observe(model, x, "x.png", NAMES, threshold=0.0)
    assert not shown.matches.of_truth and len(shown.matches.objects) == len(shown.student.boxes)
    shown = observe(model, x, "x.png", NAMES, threshold=2.0)
    assert shown.matches.objects == []
    draw_strip(shown, Look(NAMES))


def test_nothing_to_show(frozen_cfg, lgd_cfg):
    (x,) = random_batch(sizes=((70, 100),), objects=(2,))
    for model in (
        model_of(frozen_cfg, "RetinaNet", MATCHING="assigned"),
        model_of(frozen_cfg, "RetinaNet", heads=["CKD"]),
        build(lgd_cfg()).eval(),
    ):
        assert observe(model, x, "x.png", NAMES).matches is None


def test_the_frame_is_at_the_teacher_s_level():
    axes = Figure().add_subplot()
    weights = np.array([[0.1, 0.9], [1.0, 0.0], [0.5, 0.5]])
    matches = LevelMatches([0, 2, 4], weights, ["p3", "p4"], np.array([1, -1, 0]), True)
    draw_level_matches(axes, matches, ["cat", "dog", "dog", "cat", "bird"])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["1 cat", "3 dog", "5 bird"]
    frames = [(p.get_x() + 0.46, p.get_y() + 0.46) for p in axes.patches]
    assert frames == [(1.0, 0.0), (0.0, 2.0)]
    assert [t.get_text() for t in axes.texts] == [".10", ".90", "1", ".00", ".50", ".50"]
