"""Thresholds: F-beta, counts, files, exact ranks in constant memory, and who found what."""

import json
import logging

import numpy as np
import pytest
from detectron2.structures import BoxMode
from raw_runs import found, random_detections

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.label_set import Labels, LabelSet, find_record, judge
from kd_d2.projects.pseudo_label.overlaps import iou, own_share
from kd_d2.projects.pseudo_label.run_folder import ImageRecord
from kd_d2.projects.pseudo_label.score_ranks import ScoreRanks
from kd_d2.projects.pseudo_label.thresholds import (
    count_ranks,
    count_thresholds,
    fbeta_threshold,
    fbeta_thresholds,
    read_thresholds,
    warn_of_high,
)

SCORES = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
HITS = np.array([1, 1, 0, 1, 1, 0, 0, 1], bool)


def test_fbeta_of_the_example():
    assert fbeta_threshold(SCORES, HITS, 5) == pytest.approx((0.6, 0.8))
    assert fbeta_threshold(SCORES, HITS, 5, beta=1) == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.5, [0.5556, 0.7692, 0.5882, 0.7143, 0.8, 0.6897, 0.6061, 0.6757]),
        (1, [0.3333, 0.5714, 0.5, 0.6667, 0.8, 0.7273, 0.6667, 0.7692]),
    ],
)
def test_fbeta_at_every_cut_of_the_example(beta, expected):
    # of the first k detections, the best cut is the best of the first k values
    for k in range(1, 9):
        t, f = fbeta_threshold(SCORES[:k], HITS[:k], 5, beta)
        assert f == pytest.approx(max(expected[:k]), abs=5e-5)
        assert t == SCORES[expected.index(max(expected[:k]))]


def loop_fbeta(scores, hits, num, beta):
    best = (1.0, 0.0)
    for t in sorted(set(scores.tolist()), reverse=True):
        kept = scores >= t
        precision, recall = hits[kept].sum() / kept.sum(), hits[kept].sum() / num
        if precision == 0:
            continue
        f = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        if f > best[1] + 1e-12:
            best = (t, f)
    return best


def test_fbeta_with_ties_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = rng.integers(1, 30)
        scores, hits = rng.integers(1, 8, n) / 8, rng.random(n) < 0.5
        num = hits.sum() + rng.integers(1, 4)
        for beta in (0.5, 1, 2):
            assert fbeta_threshold(scores, hits, num, beta) == pytest.approx(
                loop_fbeta(scores, hits, num, beta)
            )


def test_fbeta_without_any_hit():
    assert fbeta_threshold(np.zeros(0), np.zeros(0, bool), 20) == (1, 0)
    assert fbeta_threshold(SCORES, np.zeros(8, bool), 20) == (1, 0)


def test_fbeta_of_classes():
    order = np.random.default_rng(0).permutation(8 * 5)
    category = np.repeat(np.arange(5), 8)[order]
    shift = np.array([0, 0, 0.3, -0.5, 0])
    scores = (np.tile(SCORES, 5) + np.repeat(shift, 8))[order]
    hits = np.tile(HITS, 5)[order]
    hits[category == 4] = False
    # the second class has too few labels; the next two end at the limits; the last is never found
    found = fbeta_thresholds(category, scores, hits, np.array([10, 9, 10, 10, 10, 0]), 0.55)
    alone = [fbeta_threshold(SCORES + shift[c], HITS, 10)[0] for c in (0, 2, 3)]
    assert alone[1:] == pytest.approx([0.9, 0.1])
    assert found == pytest.approx([alone[0], 0.55, 0.9, 0.3, 0.9, 0.55])
    wide = fbeta_thresholds(category, scores, hits, np.full(5, 10), 0.55, limits=(0.05, 0.95))
    assert wide[3] == pytest.approx(0.1)


def ranks_of(num_classes, parts, wanted):
    ranks = ScoreRanks(num_classes)
    for category, score in parts:
        ranks.add(category, score)
    ranks.choose(wanted)
    for category, score in parts:
        ranks.refine(category, score)
    return ranks.scores()


def test_counts_of_the_example():
    scores = np.float32([0.95, 0.9, 0.8, 0.7, 0.65, 0.6, 0.4, 0.3, 0.2, 0.1])
    rank = count_ranks(2, np.array([3.0]))
    at_rank = ranks_of(1, [(np.zeros(10, np.int16), scores)], rank)
    assert rank.tolist() == [6] and at_rank.tolist() == [np.float32(0.6)]
    t = count_thresholds(at_rank, np.array([True]), 0.5)
    assert t == pytest.approx([0.6]) and (scores >= np.float32(t)).sum() == 6


def test_count_thresholds_within_limits():
    at_rank = np.float32([0.95, 0.1, 0, np.inf, 0.4])
    known = np.array([True, True, True, True, False])
    assert count_thresholds(at_rank, known, 0.55).tolist() == [0.9, 0.3, 0.3, 0.9, 0.55]
    assert count_ranks(5, np.array([0.5, 0.49, 0, 1.1])).tolist() == [3, 2, 0, 6]


@pytest.mark.parametrize("levels", [None, 5])
def test_ranks_against_sorting(levels):
    rng = np.random.default_rng(2)
    parts = []
    for n in (0, 1, 700, 1300):
        # close together, so that the lower halves of the bits matter
        score = rng.uniform(0.4, 0.40005, n) if levels is None else rng.integers(0, 6, n) / 5
        parts.append((rng.integers(0, 3, n).astype(np.int16), score.astype(np.float32)))
    category, score = (np.concatenate(x) for x in zip(*parts))
    sizes = np.bincount(category, minlength=4)
    for rank in (1, 2, 17, 300, 600, 1000):
        expected = [
            np.sort(score[category == c])[::-1][rank - 1] if rank <= sizes[c] else 0
            for c in range(4)
        ]
        assert ranks_of(4, parts, np.full(4, rank)).tolist() == expected
    last = ranks_of(4, parts, np.maximum(sizes, 1))
    assert last[:3].tolist() == [score[category == c].min() for c in range(3)] and last[3] == 0
    assert np.isinf(ranks_of(4, parts, np.zeros(4))).all()


def test_ranks_at_the_ends_of_the_scale():
    score = np.float32([0, 1, 1e-40, np.finfo(np.float32).tiny, 0.5, -0.0])
    parts = [(np.zeros(6, np.int16), score)]
    expected = np.sort(score)[::-1]
    assert [ranks_of(1, parts, [r])[0] for r in range(1, 7)] == expected.tolist()


def test_memory_of_ranks_is_constant():
    ranks = ScoreRanks(80)
    assert ranks._counts.nbytes < 25 << 20
    size = ranks._counts.nbytes
    rng = np.random.default_rng(0)
    for _ in range(3):
        ranks.add(rng.integers(0, 80, 1000), rng.random(1000, np.float32))
    ranks.choose(np.full(80, 5))
    ranks.refine(rng.integers(0, 80, 1000), rng.random(1000, np.float32))
    assert ranks._counts.nbytes == size


KNOWN = {"a": ["car", "dog"], "b": ["dog", "cat"]}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "t.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_files_of_thresholds(write):
    flat = {"cat": 0.4, "car": 0.6, "dog": 0.5}
    expected = {"a": {"car": 0.6, "dog": 0.5}, "b": {"dog": 0.5, "cat": 0.4}}
    assert read_thresholds(write(flat), KNOWN) == expected
    assert read_thresholds(write(expected), KNOWN) == expected
    assert list(read_thresholds(write(flat), KNOWN)["b"]) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([0.5], "must be a mapping"),
        ({}, "must be a mapping"),
        ({"car": 0.5, "dog": 0.5}, "no threshold for 'cat' of b"),
        ({"car": 0.5, "dog": 0.5, "cat": 0.5, "cow": 0.5}, "Unknown class 'cow'"),
        ({"a": {"car": 0.5, "dog": 0.5}}, "no threshold for 'dog' of b"),
        ({"a": {}, "c": {}}, "Unknown teacher 'c'"),
        ({"a": {"cat": 0.5}, "b": {}}, "Unknown class of a 'cat'"),
        ({"car": 0, "dog": 0.5, "cat": 0.5}, "'car' has 0; a threshold is between"),
        ({"car": 1, "dog": 0.5, "cat": 0.5}, "'car' has 1;"),
        ({"car": True, "dog": 0.5, "cat": 0.5}, "'car' has True;"),
        ({"car": "high", "dog": 0.5, "cat": 0.5}, "'car' has 'high';"),
        ('{"car": NaN, "dog": 0.5, "cat": 0.5}', "'car' has nan;"),
    ],
)
def test_wrong_files_of_thresholds(write, content, words):
    with pytest.raises(ConfigError, match=words):
        read_thresholds(write(content), KNOWN)


def test_no_file_of_thresholds(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_thresholds(tmp_path / "none.json", KNOWN)


def test_high_thresholds_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_high({"a": {"car": 0.8, "dog": float(np.float32(0.8))}, "b": {}})
        assert not caplog.records
        warn_of_high({"a": {"car": 0.85, "dog": 0.5}})
    assert "above 0.8 for 1 of 2 classes (car)" in caplog.text


def labels_of(*rows):
    """image, x0, y0, x1, y1, category, crowd"""
    table = np.array(rows, float).reshape(-1, 7)
    return Labels(table[:, 0].astype(int), table[:, 1:5], table[:, 5].astype(int), table[:, 6] > 0)


def test_each_label_is_found_once_and_by_the_best():
    labels = labels_of((0, 0, 0, 40, 40, 0, 0), (0, 100, 0, 140, 40, 0, 0))
    d = found(
        (0, 0, 0, 40, 38, 0.6, 0),
        (0, 0, 0, 40, 36, 0.9, 0),
        (0, 100, 0, 140, 40, 0.8, 1),
        (1, 100, 0, 140, 40, 0.7, 0),
        (0, 100, 0, 140, 20, 0.5, 0),  # an IoU of 0.5 is enough
    )
    judged, hit = judge(d, labels)
    assert judged.score == pytest.approx([0.9, 0.6, 0.5, 0.8, 0.7])
    assert hit.tolist() == [True, False, True, False, False]


def test_what_lies_in_a_crowd_does_not_count():
    labels = labels_of((0, 0, 0, 100, 100, 0, 1), (0, 10, 10, 30, 30, 0, 0))
    d = found(
        (0, 10, 10, 30, 30, 0.9, 0),  # the single one
        (0, 60, 60, 80, 80, 0.8, 0),
        (0, 90, 90, 120, 120, 0.7, 0),  # a ninth of it
        (0, 60, 60, 80, 80, 0.6, 1),
    )
    judged, hit = judge(d, labels)
    assert judged.score == pytest.approx([0.9, 0.7, 0.6])
    assert hit.tolist() == [True, False, False]


def test_judging_against_a_loop():
    rng = np.random.default_rng(0)
    for levels in (None, 4):
        d = random_detections(rng, 250, images=5, teachers=1, scores=levels)
        truth = random_detections(rng, 80, images=5)
        labels = Labels(truth.image, truth.box, truth.category, rng.random(80) < 0.2)
        rows, taken = [], set()
        for k in sorted(range(250), key=lambda k: (d.image[k], d.category[k], -d.score[k], k)):
            same = (labels.image == d.image[k]) & (labels.category == d.category[k])
            free = [m for m in (same & ~labels.crowd).nonzero()[0] if m not in taken]
            best = max(free, key=lambda m: (iou(d.box[k], labels.box[m]), -m), default=None)
            hit = best is not None and iou(d.box[k], labels.box[best]) >= 0.5
            if hit:
                taken.add(best)
            crowds = (same & labels.crowd).nonzero()[0]
            if hit or not any(own_share(d.box[k], labels.box[m]) >= 0.5 for m in crowds):
                rows.append((k, hit))
        judged, hits = judge(d, labels)
        assert np.array_equal(judged.box, d.box[[k for k, _ in rows]])
        assert hits.tolist() == [hit for _, hit in rows] and 15 < hits.sum() < len(hits) < 250


def test_judging_nothing():
    nothing, hits = judge(Detections.empty(), labels_of((0, 0, 0, 9, 9, 0, 0)))
    assert len(nothing) == len(hits) == 0
    judged, hits = judge(found((0, 0, 0, 9, 9, 0.5, 0)), labels_of())
    assert len(judged) == 1 and not hits.any()


def label_set(*images):
    """File name, id, and rows of box (x, y, w, h), class and crowd of each image."""
    dicts = [
        {
            "file_name": name,
            "image_id": number,
            "annotations": [
                {
                    "bbox": list(box),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": category,
                    "iscrowd": crowd,
                }
                for box, category, crowd in rows
            ],
        }
        for name, number, rows in images
    ]
    return LabelSet(dicts, ("dog", "cow", "car"), "ours")


def test_labels_in_unified_classes():
    rows = [((1, 2, 3, 4), 0, 0), ((0, 0, 9, 9), 1, 0), ((5, 5, 5, 5), 2, 1), ((0, 0, 1, 1), 2, 0)]
    labels = label_set(("/a.jpg", 1, rows), ("/b.jpg", 2, rows[:1]), ("/c.jpg", 3, []))
    names = ("car", "person", "dog")
    assert labels.counts(names).tolist() == [1, 0, 2]
    boxes = labels.boxes([(7, labels.dicts[0]), (9, labels.dicts[1])], names)
    assert boxes.image.tolist() == [7, 7, 7, 9] and boxes.category.tolist() == [2, 0, 0, 2]
    assert boxes.box[0].tolist() == [1, 2, 4, 6]
    assert boxes.crowd.tolist() == [False, True, False, False]
    assert len(labels.boxes([], names).box) == 0


def test_labelled_images_are_found_by_path_or_by_id_and_name():
    records = label_set(("/data/x/a.jpg", 1, []), ("/data/x/b.jpg", 2, [])).by_file()

    def file_of(file_name, id):
        record = find_record(records, ImageRecord(file_name, "", id, ""))
        return record and record["file_name"]

    assert file_of("/data/y/../x/a.jpg", 77) == "/data/x/a.jpg"
    assert file_of("/elsewhere/b.jpg", 2) == "/data/x/b.jpg"
    assert file_of("/elsewhere/b.jpg", 1) is None
    assert file_of("/elsewhere/c.jpg", 1) is None


def test_a_label_set_without_labels():
    with pytest.raises(ConfigError, match="ours has no labelled image"):
        LabelSet([{"file_name": "a.jpg", "image_id": 1}], ("dog",), "ours")
