"""Merging against numbers worked by hand, and against loops written from the definitions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_runs import found, random_detections, rows_of
from torchvision.ops import batched_nms

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import overlaps
from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.merging import (
    SCORE_TYPES,
    best_first,
    keep_children,
    merge_nms,
    merge_vote,
    merge_wbf,
)
from kd_d2.projects.pseudo_label.overlaps import iou, overlapping, own_share

A = (0, 10, 10, 50, 50, 0.9, 0, 0)
B = (0, 12, 10, 54, 50, 0.6, 0, 1)
C = (0, 11, 12, 49, 52, 0.3, 0, 2)


def test_overlaps_by_hand():
    assert iou(np.array(A[1:5]), np.array(B[1:5])) == pytest.approx(0.863636, abs=1e-6)
    ignore, roi = np.array([0, 0, 20, 20]), np.array([5, 5, 25, 25])
    assert iou(ignore, roi) == pytest.approx(225 / 575)
    assert own_share(roi, ignore) == 0.5625
    mirrored = np.array([100 - 80, 11, 100 - 42, 50])
    assert iou(np.array([20, 10, 60, 50]), mirrored) == pytest.approx(0.92625)


def test_boxes_that_overlap_nothing():
    good = np.array([0.0, 0, 10, 10])
    for bad in ([5, 5, 5, 5], [np.nan, 0, 10, 10], [10, 10, 0, 0], [0, 0, np.inf, 10]):
        for one, other in ((good, bad), (bad, good), (bad, bad)):
            assert iou(np.array(one, float), np.array(other, float)) == 0
            assert not own_share(np.array(bad, float), good) > 0 or np.isfinite(bad).all()


@pytest.mark.parametrize("measure", [iou, own_share])
@pytest.mark.parametrize("least", [0.05, 0.3, 0.5, 0.9, 1])
@pytest.mark.parametrize("most", [1, 7, 10**6])
def test_pairs_against_a_loop(monkeypatch, most, least, measure):
    monkeypatch.setattr(overlaps, "_MOST_PAIRS", most)
    rng = np.random.default_rng(0)
    a, b = random_detections(rng, 60), random_detections(rng, 70, images=6)
    a.image[a.image == 2] = 20  # a group that the others have not
    same = rng.integers(10, 60, 8)
    b.box[:8], b.image[:8] = a.box[same], a.image[same]
    b.box[8:14, 2:] += rng.uniform(0, 80, (6, 2))
    b.box[14], b.box[15], b.box[16, 2] = np.nan, np.inf, 1e30
    a.box[3, 1], a.box[4] = np.nan, [-1e30, 0, 1e30, 100]
    i, j, share = overlapping(a.image, a.box, b.image, b.box, least, measure)
    expected = [
        (x, y)
        for x in range(60)
        for y in range(70)
        if a.image[x] == b.image[y] and measure(a.box[x], b.box[y]) >= least
    ]
    assert list(zip(i.tolist(), j.tolist())) == expected and expected
    assert share == pytest.approx(measure(a.box[i], b.box[j]))


def test_pairs_at_the_very_limit():
    # (1 - 0.9) * 10 is less than 1
    a, b, group = np.array([[0.0, 0, 10, 10]]), np.array([[1.0, 0, 10, 10]]), np.array([5])
    for one, other in ((a, b), (b, a)):
        assert overlapping(group, one, group, other, 0.9)[2].tolist() == [0.9]


def test_an_overlap_of_just_the_limit_is_none():
    d = found((0, 0, 0, 40, 40, 0.9, 0, 0), (0, 0, 0, 40, 20, 0.8, 0, 1))
    assert iou(d.box[0], d.box[1]) == 0.5
    for thr, left in ((0.5, 2), (0.49, 1)):
        merged = merge_nms(d, thr), merge_wbf(d, KNOWN, thr), merge_vote(d, KNOWN, thr, 1)
        assert [len(x) for x in merged] == [left] * 3
        assert merged[0].votes.tolist() == [3 - left] * left


def test_pairs_of_nothing():
    d = random_detections(np.random.default_rng(0), 9)
    for a, b in ((d[:0], d), (d, d[:0]), (d[:0], d[:0])):
        assert [len(x) for x in overlapping(a.image, a.box, b.image, b.box, 0.3)] == [0, 0, 0]


def test_nms_keeps_the_best_of_the_example():
    kept = merge_nms(found(B, A, C))
    assert kept.box.tolist() == [[10, 10, 50, 50]] and kept.score == pytest.approx([0.9])
    assert kept.votes.tolist() == [3] and kept.teacher.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "known", "box", "score"),
    [
        ([A, B], 2, (10.8, 10, 51.6, 50), 0.75),
        ([A, B], 3, (10.8, 10, 51.6, 50), 0.5),
        ([A, B, C], 3, (10.8333, 10.3333, 51.1667, 50.3333), 0.6),
        ([(0, 10, 10, 50, 50, 0.8, 0, 0)], 2, (10, 10, 50, 50), 0.4),
        ([(0, 10, 10, 50, 50, 0.8, 0, 0)], 1, (10, 10, 50, 50), 0.8),
    ],
)
def test_fusion_of_the_example(rows, known, box, score):
    fused = merge_wbf(found(*rows), np.array([known]))
    assert fused.box[0] == pytest.approx(box, abs=1e-4) and len(fused) == 1
    assert fused.score == pytest.approx([score]) and fused.votes.tolist() == [len(rows)]


@pytest.mark.parametrize(
    ("score_type", "expected"),
    [("max", 0.9), ("box_and_model_avg", 0.75 * 2 / 3), ("absent_model_aware_avg", 1.5 / 3)],
)
def test_other_scores_of_the_example(score_type, expected):
    fused = merge_wbf(found(A, B), np.array([3]), score_type=score_type)
    assert fused.score == pytest.approx([expected])


def test_an_unknown_score_type():
    with pytest.raises(ConfigError, match="no score type 'mean'"):
        merge_wbf(found(A), np.array([1]), score_type="mean")


def loop_groups(d):
    """Lists of detections, a list for each image and class, the best first."""
    keys = sorted(set(zip(d.image.tolist(), d.category.tolist())))
    for image, category in keys:
        members = [k for k in range(len(d)) if (d.image[k], d.category[k]) == (image, category)]
        yield category, sorted(members, key=lambda k: (-d.score[k], d.teacher[k], k))


def row(d, k, votes, box=None, score=None):
    box = d.box[k] if box is None else box
    score = d.score[k] if score is None else score
    return [d.image[k], d.category[k], d.teacher[k], votes, d.agreement[k], score, *box]


def check(merged, rows):
    """The same boxes in the same order."""
    numbers = "image", "category", "teacher", "votes", "agreement", "score"
    table = np.column_stack([*(getattr(merged, x) for x in numbers), merged.box])
    assert table == pytest.approx(np.array(rows, float).reshape(-1, 10), rel=1e-5)


def loop_nms(d, thr):
    rows = []
    for _, members in loop_groups(d):
        kept = []
        for k in members:
            if all(iou(d.box[k], d.box[other]) <= thr for other in kept):
                kept.append(k)
        for k in kept:
            near = {d.teacher[m] for m in members if m == k or iou(d.box[m], d.box[k]) > thr}
            rows.append(row(d, k, len(near)))
    return rows


def loop_vote(d, known, thr, min_votes):
    rows = []
    for category, members in loop_groups(d):
        clusters = []
        for k in members:
            shares = [iou(d.box[k], d.box[c[0]]) for c in clusters]
            best = max(shares, default=0)
            if best > thr:
                clusters[shares.index(best)].append(k)
            else:
                clusters.append([k])
        for c in clusters:
            votes = len({d.teacher[k] for k in c})
            if votes >= min(min_votes, known[category]):
                rows.append(row(d, c[0], votes))
    return rows


def loop_wbf(d, known, thr, score_type):
    rows = []
    for category, members in loop_groups(d):
        clusters, boxes = [], []
        for k in members:
            shares = [iou(d.box[k], b) for b in boxes]
            best = max(shares, default=0)
            if best > thr:
                at = shares.index(best)
                clusters[at].append(k)
                mass = d.score[clusters[at]].astype(float)
                boxes[at] = (mass[:, None] * d.box[clusters[at]]).sum(0) / mass.sum()
            else:
                clusters.append([k])
                boxes.append(d.box[k].astype(float))
        m = known[category]
        for c, box in zip(clusters, boxes):
            s, votes = d.score[c].astype(float), len({d.teacher[k] for k in c})
            score = {
                "avg": s.mean() * min(len(c), m) / m,
                "max": s.max(),
                "box_and_model_avg": s.mean() * votes / m,
                "absent_model_aware_avg": s.sum() / (len(c) + m - votes),
            }[score_type]
            rows.append(row(d, c[0], votes, box, score))
    return rows


KNOWN = np.array([3, 3, 2])


def cases():
    rng = np.random.default_rng(5)
    for n in (0, 1, 2, 30, 200):
        for levels in (None, 3):
            yield random_detections(rng, n, scores=levels)


def limited(d):
    """Only two of the teachers know the last class."""
    return d[(d.category < 2) | (d.teacher < 2)]


@pytest.mark.parametrize("d", list(cases()), ids=len)
def test_nms_against_a_loop(d):
    check(merge_nms(d, 0.4), loop_nms(d, 0.4))


def test_nms_against_torchvision():
    d = best_first(random_detections(np.random.default_rng(1), 300))
    group = torch.from_numpy(d.image * 3 + d.category)
    boxes, scores = torch.from_numpy(d.box), torch.from_numpy(d.score)
    kept = batched_nms(boxes, scores, group, 0.45).sort().values.numpy()
    merged = merge_nms(d, 0.45)
    assert np.array_equal(merged.box, d.box[kept]) and 20 < len(kept) < 250


@pytest.mark.parametrize("min_votes", [1, 2, 3])
@pytest.mark.parametrize("d", list(cases()), ids=len)
def test_vote_against_a_loop(d, min_votes):
    d = limited(d)
    check(merge_vote(d, KNOWN, 0.4, min_votes), loop_vote(d, KNOWN, 0.4, min_votes))


@pytest.mark.parametrize("score_type", SCORE_TYPES)
@pytest.mark.parametrize("d", list(cases()), ids=len)
def test_fusion_against_a_loop(d, score_type):
    d = limited(d)
    check(merge_wbf(d, KNOWN, 0.4, score_type), loop_wbf(d, KNOWN, 0.4, score_type))


RECORD = json.loads(Path(__file__).with_name("ensemble_boxes.json").read_text())


@pytest.mark.parametrize(
    "result", RECORD["results"], ids=lambda r: f"{r['score_type']}-{r['weights']}"
)
def test_fusion_against_its_authors(result):
    d = found(*RECORD["detections"])
    weights = result["weights"] and np.tile(np.array(result["weights"])[:, None], 2)
    kind = result["score_type"]
    fused = merge_wbf(d, np.array([3, 3]), RECORD["iou_thr"], kind, weights)
    mine = np.column_stack([fused.image, fused.category, fused.box, fused.score])
    theirs = np.array(result["fused"])
    theirs[:, -1] = theirs[:, -1].clip(max=1)  # weights can raise theirs above 1
    mine, theirs = (x[np.lexsort(x.round(2).T[::-1])] for x in (mine, theirs))
    assert len(mine) == len(theirs) > 20
    assert mine == pytest.approx(theirs, abs=1e-4)


def test_weights_of_teachers():
    weights = np.array([[2.0], [1.0]])
    fused = merge_wbf(found(A, B), np.array([2]), weights=weights)
    # (1.8 * 10 + 0.6 * 12) / 2.4, and (1.8 + 0.6) / 2 * 2 / 3
    assert fused.box[0, 0] == pytest.approx(10.5) and fused.score == pytest.approx([0.8])
    turned = merge_wbf(found(A, B), np.array([2]), weights=np.array([[1.0], [2.0]]))
    assert turned.teacher.tolist() == [1]  # 0.6 * 2 is more than 0.9


def test_a_fused_box_moves_on():
    # the third overlaps the first by less than 0.5, but the mean of the first two by more
    rows = [(0, 0, 0, 40, 40, 0.9, 0), (0, 12, 0, 52, 40, 0.8, 0), (0, 14, 0, 54, 40, 0.7, 0)]
    d = found(*rows)
    assert iou(d.box[0], d.box[2]) < 0.5
    assert len(merge_wbf(d, np.array([1]), 0.5)) == 1
    assert len(merge_nms(d, 0.5)) == 2


def test_the_best_member_speaks_for_the_others():
    d = found((*B, 0.2), (*A, 0.9), (*C, 0.6))
    for merged in (
        merge_nms(d),
        merge_wbf(d, np.array([3])),
        merge_vote(d, np.array([3])),
    ):
        assert merged.agreement == pytest.approx([0.9]) and merged.teacher.tolist() == [0]


def test_equal_scores_go_to_the_lower_teacher_and_then_to_the_first():
    same = [(0, 10 + k, 10, 50 + k, 50, 0.5, 0, t) for k, t in ((0, 1), (1, 0), (2, 0))]
    for merged in (merge_nms(found(*same)), merge_vote(found(*same), np.array([2]))):
        assert merged.box[0, 0] == 11 and merged.teacher.tolist() == [0]


def test_the_order_of_teachers_in_the_input_does_not_matter():
    d = random_detections(np.random.default_rng(3), 150, scores=4)
    d.box += np.random.default_rng(4).uniform(0, 1, d.box.shape)
    shuffled = d[np.argsort(-d.teacher, kind="stable")]
    for merge in (merge_nms, lambda x: merge_wbf(x, KNOWN), lambda x: merge_vote(x, KNOWN)):
        assert rows_of(merge(d)) == rows_of(merge(shuffled))


def test_a_class_that_one_teacher_knows_needs_one_vote():
    d = found((0, 0, 0, 10, 10, 0.8, 0, 1), (0, 50, 50, 70, 70, 0.9, 1, 0))
    assert merge_vote(d, np.array([1, 2])).category.tolist() == [0]


def test_images_and_classes_are_apart():
    d = found((0, 0, 0, 9, 9, 0.9, 0), (1, 0, 0, 9, 9, 0.8, 0), (0, 0, 0, 9, 9, 0.7, 1))
    for merged in (merge_nms(d), merge_wbf(d, np.array([1, 1])), merge_vote(d, np.ones(2, int))):
        assert len(merged) == 3 and merged.votes.tolist() == [1, 1, 1]


def test_what_is_no_number_spoils_nothing_else():
    bad = (0, np.nan, 10, 50, 50, 0.95, 0, 0), (0, 10, 10, 50, 50, np.nan, 0, 1)
    fused = merge_wbf(found(A, *bad, B), np.array([2]))
    clean = np.isfinite(fused.box).all(1) & np.isfinite(fused.score)
    assert fused[clean].box[0] == pytest.approx([10.8, 10, 51.6, 50]) and clean.sum() == 1
    assert len(fused) == 3
    kept = merge_nms(found(A, *bad, B))
    assert kept.score[np.isfinite(kept.box).all(1)] == pytest.approx([0.9])


def test_boxes_of_score_zero_have_a_mean():
    zero = [(0, 10, 10, 50, 50, 0, 0, 0), (0, 12, 10, 52, 50, 0, 0, 1)]
    fused = merge_wbf(found(*zero), np.array([2]))
    assert fused.box.tolist() == [[11, 10, 51, 50]] and fused.score.tolist() == [0]


def test_children_replace_their_parents():
    vehicle, car, van, dog = range(4)
    d = found(
        (0, 10, 10, 50, 50, 0.9, vehicle),
        (0, 11, 10, 50, 50, 0.4, car),
        (0, 60, 60, 90, 90, 0.9, vehicle),
        (0, 60, 60, 90, 78, 0.9, car),  # IoU 0.6
        (1, 10, 10, 50, 50, 0.9, vehicle),
        (1, 10, 10, 50, 50, 0.9, dog),
        (2, 10, 10, 50, 50, 0.9, vehicle),
        (2, 10, 10, 50, 50, 0.8, van),
    )
    kept = keep_children(d, {car: vehicle, van: car})
    gone = [k for k in range(8) if k not in (0, 6)]
    assert np.array_equal(kept.box, d.box[gone]) and np.array_equal(kept.image, d.image[gone])
    sure = keep_children(d, {car: vehicle, van: car}, least=np.full(4, 0.5))
    assert len(sure) == 7 and sure.score[0] == pytest.approx(0.9)
    assert len(keep_children(d, {})) == 8
    assert len(keep_children(Detections.empty(), {car: vehicle})) == 0
