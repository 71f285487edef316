"""How good pseudo boxes are: by hand, and against a slow matching."""

import json

import numpy as np
import pytest
from cases import Case, label_set, make_run

from kd_d2.projects.pseudo_label.report_tables import tables
from kd_d2.projects.pseudo_label.run_folder import RunFolder
from kd_d2.projects.pseudo_label.shards import UNCERTAIN, USED
from kd_d2.projects.pseudo_label.statistics import statistics


def test_quality_by_hand(tmp_path):
    kept = [
        (0, 0, 0, 20, 20, 0.9, 0),  # right, IoU 1
        (0, 1, 0, 21, 20, 0.8, 0),  # a double of it: IoU 19 / 21, but it is taken
        (0, 40, 0, 60, 15, 0.7, 0),  # right, IoU 0.75
        (1, 0, 0, 20, 20, 0.9, 0),  # the image is labelled, and has no cat
        (2, 0, 0, 20, 20, 0.9, 0),  # nobody has labelled it
        (1, 30, 30, 50, 50, 0.9, 1),  # right
        (1, 60, 40, 70, 50, 0.95, 1),  # in a crowd: does not count
        (3, 0, 0, 20, 20, 0.9, 0),  # of an image that is dropped
    ]
    run = make_run(tmp_path, Case(status=[USED, USED, USED, UNCERTAIN], kept=kept))
    boxes = [
        (0, 0, 0, 20, 20, 0),
        (0, 40, 0, 60, 20, 0),
        (0, 60, 40, 80, 60, 0),  # missed
        (1, 30, 30, 50, 50, 1),
        (1, 55, 35, 80, 60, 1, 1),
        (1, 1, 1, 9, 9, 2),  # a bird, missed
        (3, 0, 0, 20, 20, 0),
    ]
    result = statistics(run, truth=label_set(run, boxes))
    assert result.quality_images == {"used": 2, "dropped": 1}
    cat, dog, bird = (x.quality for x in result.classes)
    assert (cat.objects, cat.boxes, cat.right) == (3, 4, 2)
    assert (cat.precision, cat.recall) == pytest.approx((0.5, 2 / 3))
    assert cat.f1 == pytest.approx(4 / 7) and cat.mean_iou == pytest.approx(0.875)
    assert cat.missing_rate == pytest.approx(1 / 3)
    assert (dog.objects, dog.boxes, dog.right, dog.ap) == (1, 1, 1, pytest.approx(100))
    assert (bird.precision, bird.recall, bird.ap, bird.mean_iou) == (None, 0, 0, None)
    assert (result.quality.objects, result.quality.boxes, result.quality.right) == (5, 5, 3)
    # COCO's AP of the cats: at IoU 0.5 to 0.75 the hits are 1, 0, 0 (the other image), 1; later
    # only the first. The scores are 0.9 (image 0), 0.9 (image 1), 0.8, 0.7.
    low = np.where(np.linspace(0, 1, 101) <= 1 / 3, 1, 0.5) * (np.linspace(0, 1, 101) <= 2 / 3)
    high = (np.linspace(0, 1, 101) <= 1 / 3).astype(float)
    assert cat.ap == pytest.approx(100 * (6 * low.mean() + 4 * high.mean()) / 10)
    assert result.quality.ap == pytest.approx((cat.ap + 100 + 0) / 3)


def test_perfect_boxes(tmp_path):
    kept = [(i, 5, 5, 30, 30 + i, 0.6 + 0.1 * i, i % 2) for i in range(4)]
    run = make_run(tmp_path, Case(status=[USED] * 4, kept=kept))
    truth = label_set(run, [(*r[:5], r[6]) for r in kept])
    q = statistics(run, truth=truth).quality
    assert (q.precision, q.recall, q.f1, q.missing_rate) == (1, 1, 1, 0)
    assert q.ap == pytest.approx(100) and q.mean_iou == pytest.approx(1)


def test_quality_against_a_slow_matching(tmp_path):
    generator = np.random.default_rng(1)

    def boxes(n, spread):
        low = generator.uniform(0, spread, (n, 2))
        return np.hstack([low, low + generator.uniform(8, 25, (n, 2))]).round(2)

    kept, labels = [], []
    for i in range(8):
        truth = boxes(6, 40)
        noisy = np.vstack([truth + generator.uniform(-3, 3, truth.shape), boxes(5, 40)]).round(2)
        labels += [(i, *b, k % 3) for k, b in enumerate(truth.tolist())]
        scores = generator.permutation(11) / 25 + 0.5
        kept += [(i, *b, s, k % 3) for k, (b, s) in enumerate(zip(noisy.tolist(), scores.tolist()))]
    run = make_run(tmp_path, Case(status=[USED] * 8, kept=kept, shard_size=3))
    result = statistics(run, truth=label_set(run, labels))
    for c, x in enumerate(result.classes):
        right, ious = 0, 0.0
        for i in range(8):
            free = [b for b in labels if b[0] == i and b[5] == c]
            for r in sorted((r for r in kept if r[0] == i and r[6] == c), key=lambda r: -r[5]):
                found = [(slow_iou(r[1:5], b[1:5]), b) for b in free]
                best = max(found, default=(0, None))
                if best[0] >= 0.5:
                    right, ious = right + 1, ious + best[0]
                    free.remove(best[1])
        assert 0 < right < x.kept
        assert (x.quality.right, x.quality.boxes) == (right, x.kept)
        assert x.quality.iou == pytest.approx(ious, abs=1e-2)


def slow_iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_labelled_images_without_any_pseudo_box(tmp_path):
    run = make_run(tmp_path, Case(status=[USED, USED]))
    q = statistics(run, truth=label_set(run, [(0, 1, 1, 9, 9, 0)], empty=[1])).quality
    assert (q.objects, q.boxes, q.precision, q.recall, q.ap) == (1, 0, None, 0, 0)


def test_labelled_images_without_any_object(tmp_path):
    kept = [(0, 1, 1, 20, 20, 0.9, 0)]
    run = make_run(tmp_path, Case(status=[USED, USED], kept=kept))
    q = statistics(run, truth=label_set(run, [], empty=[0, 1])).quality
    assert (q.objects, q.boxes, q.precision, q.recall, q.ap) == (0, 1, 0, None, None)


def test_all_labelled_images_are_dropped(tmp_path):
    run = make_run(tmp_path, Case(status=[USED, UNCERTAIN], kept=[(0, 1, 1, 9, 9, 0.9, 0)]))
    result = statistics(run, truth=label_set(run, [(1, 1, 1, 9, 9, 0)]))
    assert result.quality_images == {"used": 0, "dropped": 1}
    assert result.quality.objects == 0


def test_quality_by_source(tmp_path):
    """Images 0 and 2 are of one source, 1 and 3 of the other, of which 3 is dropped."""
    kept = [
        (0, 0, 0, 20, 20, 0.9, 0),  # right, IoU 1
        (2, 0, 0, 20, 20, 0.8, 0),  # right, IoU 0.75
        (2, 0, 0, 20, 20, 0.9, 1),  # wrong
        (1, 0, 0, 20, 20, 0.9, 1),  # right
        (3, 0, 0, 20, 20, 0.9, 1),
    ]
    run = make_run(tmp_path, Case(status=[USED, USED, USED, UNCERTAIN], kept=kept))
    boxes = [(0, 0, 0, 20, 20, 0), (2, 0, 0, 20, 15, 0), (1, 0, 0, 20, 20, 1)]
    boxes += [(1, 40, 40, 60, 60, 2), (3, 40, 40, 60, 60, 2)]
    truth = label_set(run, boxes)
    assert statistics(run, truth=truth).quality_by_source is None  # all are of one
    images = run.folder / "images.jsonl"
    records = [json.loads(line) for line in images.read_text().splitlines()]
    for i, record in enumerate(records):
        record["source"] = "odd" if i % 2 else "even"
    images.write_text("".join(json.dumps(x) + "\n" for x in records))
    result = statistics(RunFolder(run.folder), truth=truth)
    even, odd = (result.quality_by_source[x] for x in ("even", "odd"))
    assert (even.objects, even.boxes, even.right, even.ap) == (2, 3, 2, None)
    assert (even.precision, even.recall, even.mean_iou) == pytest.approx((2 / 3, 1, 0.875))
    assert (odd.objects, odd.boxes, odd.right, odd.recall) == (2, 1, 1, 0.5)
    whole = result.quality
    assert (whole.objects, whole.boxes, whole.right) == (4, 4, 3)
    assert result.record()["quality_by_source"]["odd"]["precision"] == 1
    table = {x.title: x for x in tables(result)}["Quality by source of the images"]
    assert table.head == ["source", "boxes", "objects", "precision", "recall", "F1"]
    assert table.rows == [
        ["even", "3", "2", "0.67", "1.00", "0.80"],
        ["odd", "1", "2", "1.00", "0.50", "0.67"],
    ]
    json.dumps(result.record(), allow_nan=False)
