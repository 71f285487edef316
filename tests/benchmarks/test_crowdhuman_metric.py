"""benchmarks/crowdhuman_metric.py runs, and its random crowds are crowds."""

import crowdhuman_metric
import numpy as np
from detectron2.data import MetadataCatalog


def test_it_prints_seconds(capsys):
    assert crowdhuman_metric.main(["--images", "5", "--detections", "60"]) == 0
    text = capsys.readouterr().out
    assert "5 images x 60 detections x about 23 persons: " in text and "AP " in text
    assert crowdhuman_metric.NAME not in MetadataCatalog


def test_detections_are_inside_sorted_and_near_persons():
    rng = np.random.default_rng(0)
    persons = crowdhuman_metric.random_persons(rng, 23)
    boxes, scores = crowdhuman_metric.random_detections(rng, persons, 500)
    assert boxes.shape == (500, 4) and (boxes[:, 2:] >= boxes[:, :2]).all()
    assert (boxes >= 0).all() and (boxes <= [1361, 967, 1361, 967]).all()
    assert (np.diff(scores) <= 0).all() and scores.min() >= 0.05 and scores.max() <= 1
