"""Filters one by one, at their limits, in their order; and what becomes of images."""

import numpy as np
import pytest
from raw_runs import HEIGHT, WIDTH, found, random_detections

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.filters import (
    FilterSettings,
    default_t_ignore,
    filter_detections,
    image_status,
    reliable,
)
from kd_d2.projects.pseudo_label.overlaps import iou
from kd_d2.projects.pseudo_label.shards import AMBIGUOUS, EMPTY, FAILED, UNCERTAIN, USED


def run(d, t_keep=0.5, t_ignore=0.3, **settings):
    n = len(d)
    sizes = np.tile([HEIGHT, WIDTH], (n, 1))
    thresholds = (np.broadcast_to(t, n) for t in (t_keep, t_ignore))
    return filter_detections(d, *thresholds, sizes, FilterSettings(**settings))


def counts(result, *names):
    return {name: result.counters[name] for name in names}


GOOD = (0, 10, 10, 50, 50)


@pytest.mark.parametrize(
    "bad",
    [
        (0, np.nan, 10, 50, 50, 0.9),
        (0, 10, 10, np.inf, 50, 0.9),
        (0, 10, 10, 50, 50, np.nan),
        (0, 10, 10, 50, 50, np.inf),
        (0, 50, 10, 10, 50, 0.9),
        (0, 10, 50, 50, 10, 0.9),
    ],
)
def test_invalid_numbers(bad):
    result = run(found((*bad, 0), (*GOOD, 0.9, 0)))
    assert result.counters["invalid"] == 1 and sum(result.counters.values()) == 1
    assert result.pseudo.box.tolist() == [list(GOOD[1:])] and not len(result.ignore)


def test_boxes_end_at_the_image():
    d = found(
        (0, -5, -9, 300, 150, 0.9, 0), (0, 0, 0, 200, 100, 0.8, 0), (0, 190, 5, 201, 40, 0.7, 0)
    )
    result = run(d)
    assert result.pseudo.box.tolist() == [[0, 0, 200, 100], [0, 0, 200, 100], [190, 5, 200, 40]]
    assert result.counters["clipped"] == 2
    assert d.box[0].tolist() == [-5, -9, 300, 150]  # what comes in stays as it is


def test_boxes_outside_the_image_are_small():
    result = run(found((0, 250, 10, 300, 50, 0.9, 0), (0, 10, -60, 50, -20, 0.4, 0)))
    assert counts(result, "clipped", "small") == {"clipped": 2, "small": 2}


@pytest.mark.parametrize(
    ("width", "height", "fell"),
    [(4, 4, None), (3.9, 40, "small"), (40, 3.9, "small"), (4, 48, None), (4, 48.1, "elongated"),
     (60.5, 5, "elongated"), (60, 5, None)],
)  # fmt: skip
def test_small_and_elongated(width, height, fell):
    result = run(found((0, 0, 0, width, height, 0.9, 0)))
    fallen = {name for name, n in result.counters.items() if n}
    assert fallen == ({fell} if fell else set()) and len(result.pseudo) == (fell is None)


def test_the_area_counts_by_itself():
    d = found((0, 0, 0, 5, 5, 0.9, 0))
    assert run(d, min_area=25.0).counters["small"] == 0
    assert run(d, min_area=25.1).counters["small"] == 1


def test_small_is_measured_in_the_image():
    assert run(found((0, -50, 10, 3, 60, 0.9, 0))).counters["small"] == 1


def test_bands():
    rows = [(*GOOD, s, 0) for s in (0.9, 0.7, 0.69, 0.5, 0.49)]
    result = run(found(*rows), 0.7, 0.5)
    assert result.pseudo.score == pytest.approx([0.9, 0.7])
    assert result.ignore.score == pytest.approx([0.69, 0.5])
    assert counts(result, "low_score", "uncertain") == {"low_score": 1, "uncertain": 2}


def test_thresholds_that_no_float32_hits():
    score = np.random.default_rng(0).uniform(0.05, 0.95, 2000)
    box = np.tile([10.0, 10, 50, 50], (2000, 1))
    d = Detections.make(np.arange(2000), box, score, 0)
    assert len(run(d, score, score - 0.01).pseudo) == 2000
    result = run(d, score + 0.01, score)
    assert len(result.ignore) == 2000 and not len(result.pseudo)


def test_each_detection_has_its_thresholds():
    d = found((*GOOD, 0.6, 0), (*GOOD, 0.6, 1), (*GOOD, 0.6, 2))
    result = run(d, np.array([0.5, 0.7, 0.9]), np.array([0.3, 0.5, 0.7]))
    assert result.pseudo.category.tolist() == [0] and result.ignore.category.tolist() == [1]


def test_the_band_of_ignore_boxes():
    t = np.array([0.9, 0.5, 0.3, 0.29, 0.2, 0.08])
    assert default_t_ignore(t) == pytest.approx([0.7, 0.3, 0.1, 0.1, 0.1, 0.08])


def test_duplicates_of_other_classes():
    d = found(
        (*GOOD, 0.8, 0),
        (*GOOD, 0.9, 1),
        (*GOOD, 0.7, 1),  # of the better one's class, but not of the first one's
        (1, *GOOD[1:], 0.6, 0),
        (*GOOD, 0.4, 2),
        (0, 10, 10, 50, 45, 0.6, 2),  # IoU 0.875
    )
    assert run(d).counters["duplicate"] == 0
    result = run(d, duplicate_iou=0.9)
    kept = list(zip(result.pseudo.category.tolist(), result.pseudo.score.round(1).tolist()))
    assert [c for c, _ in kept] == [1, 1, 2, 0] and result.counters["duplicate"] == 2
    assert not len(result.ignore)


def test_a_pseudo_box_is_better_than_an_ignore_box():
    d = found((*GOOD, 0.6, 0), (*GOOD, 0.7, 1))
    result = run(d, np.array([0.5, 0.8]), duplicate_iou=0.9)
    assert result.pseudo.category.tolist() == [0] and not len(result.ignore)


def test_duplicates_against_a_loop():
    rng = np.random.default_rng(0)
    d = random_detections(rng, 200, scores=5)
    d.box = np.minimum(d.box, HEIGHT)
    result = run(d, duplicate_iou=0.5)
    alive = [k for k in range(200) if d.score[k] >= 0.3]
    kept = []
    for k in sorted(alive, key=lambda k: (d.score[k] < 0.5, -d.score[k], k)):
        if all(
            d.image[k] != d.image[m]
            or d.category[k] == d.category[m]
            or iou(d.box[k], d.box[m]) < 0.5
            for m in kept
        ):
            kept.append(k)
    assert len(result.pseudo) + len(result.ignore) == len(kept) < len(alive) - 20
    expected = d[[k for k in sorted(kept) if d.score[k] >= 0.5]].by_image()
    assert np.array_equal(result.pseudo.box, expected.box)


def test_many_boxes_of_an_image():
    scores = np.linspace(0.99, 0.51, 7)
    d = found(*((k % 2, *GOOD[1:], s, 0) for k, s in enumerate(scores)), (0, *GOOD[1:], 0.4, 0))
    result = run(d, max_boxes=2)
    best = {0: [0.99, 0.83], 1: [0.91, 0.75]}
    for image, expected in best.items():
        assert result.pseudo.score[result.pseudo.image == image] == pytest.approx(expected)
    assert result.counters["too_many"] == 3 and len(result.ignore) == 4


def test_of_equal_scores_the_first_stay():
    d = found(*((0, 10, 10, 50 + k, 50, 0.8, 0) for k in range(5)))
    assert run(d, max_boxes=2).pseudo.box[:, 2].tolist() == [50, 51]


def test_agreement_with_the_mirrored_image():
    rows = [(*GOOD, 0.9, 0, 0, a) for a in (0.92625, 0.7, 0.69, np.nan)]
    assert reliable(found(*rows).agreement).tolist() == [True, True, False, False]
    assert run(found(*rows)).counters["disagreeing"] == 0
    result = run(found(*rows), min_agreement=0.7)
    assert len(result.pseudo) == len(result.ignore) == result.counters["disagreeing"] == 2


def test_the_order_of_the_counters_is_that_of_the_filters():
    result = run(Detections.empty(), duplicate_iou=0.9, min_agreement=0.7)
    assert list(result.counters) == [
        "invalid", "clipped", "small", "elongated", "low_score", "uncertain", "duplicate",
        "too_many", "disagreeing",
    ]  # fmt: skip
    assert not any(result.counters.values())
    assert len(result.pseudo) == len(result.ignore) == 0


def test_every_box_is_somewhere():
    rng = np.random.default_rng(0)
    d = random_detections(rng, 500, images=20)
    d.box[::50] = np.nan
    d.box[1::50, 2:] = d.box[1::50, :2] + 1
    result = run(d, duplicate_iou=0.6, max_boxes=3, min_agreement=0.5)
    gone = ("invalid", "small", "elongated", "low_score", "duplicate")
    assert sum(counts(result, *gone).values()) + len(result.pseudo) + len(result.ignore) == 500
    became = ("uncertain", "too_many", "disagreeing")
    assert sum(counts(result, *became).values()) >= len(result.ignore) > 0
    for part in (result.pseudo, result.ignore):
        assert np.array_equal(part.box, part.by_image().box)


PSEUDO = np.array([2, 0, 0, 1, 0, 1])
IGNORE = np.array([0, 3, 0, 1, 0, 4])
HOPEFUL = np.array([1, 1, 0, 1, 1, 1], bool)
BROKEN = np.array([0, 0, 0, 0, 0, 0], bool)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [USED, UNCERTAIN, USED, USED, UNCERTAIN, USED]),
        ({"empty_images": "keep"}, [USED] * 6),
        ({"empty_images": "drop"}, [USED, EMPTY, EMPTY, USED, EMPTY, USED]),
        (
            {"max_ambiguous_ratio": 0.5},
            [USED, UNCERTAIN, USED, USED, UNCERTAIN, AMBIGUOUS],
        ),
        (
            {"max_ambiguous_ratio": 0.8, "empty_images": "keep"},
            [USED, AMBIGUOUS, USED, USED, USED, USED],
        ),
        ({"max_ambiguous_ratio": 0}, [USED, UNCERTAIN, USED, AMBIGUOUS, UNCERTAIN, AMBIGUOUS]),
    ],
)
def test_images(settings, expected):
    status = image_status(PSEUDO, IGNORE, HOPEFUL, BROKEN, FilterSettings(**settings))
    assert status.tolist() == expected and status.dtype == np.int8
    status = image_status(PSEUDO, IGNORE, HOPEFUL, ~BROKEN, FilterSettings(**settings))
    assert status.tolist() == [FAILED] * 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("t_ignore", 0),
        ("t_ignore", 1.2),
        ("min_side", -1),
        ("min_area", float("nan")),
        ("max_aspect", 0.5),
        ("duplicate_iou", 90),
        ("max_boxes", 0),
        ("min_agreement", 1.5),
        ("empty_images", "maybe"),
        ("max_ambiguous_ratio", -0.1),
    ],
)
def test_wrong_settings(key, value):
    with pytest.raises(ConfigError, match=rf"{key.upper()} \(--.*\) is .*; it must be "):
        FilterSettings(**{key: value})
