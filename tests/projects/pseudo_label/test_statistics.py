"""Numbers of a run: by hand, and against slow loops."""

import json

import numpy as np
import pytest
from cases import Case, label_set, make_run, usual_case

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.alarms import alarms
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import AMBIGUOUS, FAILED, UNCERTAIN, USED
from kd_d2.projects.pseudo_label.speed import speeds
from kd_d2.projects.pseudo_label.statistics import MOST_BOXES, statistics


def of_class(result, name):
    return next(x for x in result.classes if x.name == name)


def test_the_usual_run_by_hand(tmp_path):
    result = statistics(make_run(tmp_path, usual_case()))
    assert result.images == {
        "all": 5, "read": 4, "used": 3, "failed": 1, "uncertain": 1, "ambiguous": 0, "empty": 0,
        "without_boxes": 1,
    }  # fmt: skip
    assert result.boxes_per_image[:4] == [1, 1, 1, 0] and sum(result.boxes_per_image) == 3
    assert result.mean_boxes == 1
    cat, dog, bird = result.classes
    assert [(x.raw, x.kept, x.ignored) for x in (cat, dog, bird)] == [
        (3, 2, 0), (2, 1, 1), (2, 0, 1)
    ]  # fmt: skip
    assert (dog.t_keep, dog.t_ignore, dog.thresholds) == (0.6, 0.4, {"big": 0.5, "other": 0.5})
    # 30 x 40 = 1200 is medium, 80 x 60 too, 14.875 x 24.25 small
    assert cat.sizes == {"small": 0, "medium": 2, "large": 0}
    assert dog.sizes == {"small": 1, "medium": 0, "large": 0}
    assert result.sizes == {"small": 1, "medium": 2, "large": 0} and result.kept == 3
    assert result.filters["small"] == 3
    assert result.agreement == {"big": {"other": 0.75}, "other": {"big": 0.75}}
    assert result.throughput == {} and result.quality is None and cat.share is None


def test_score_histogram(tmp_path):
    scores = [0.0, 0.02, 0.52, 0.54, 0.56, 0.97, 1.0]
    rows = [(0, 1, 1, 20, 20, s, 1) for s in scores]
    result = statistics(make_run(tmp_path, Case(status=[USED], merged=rows)))
    expected = [0] * 20
    expected[0], expected[10], expected[11], expected[19] = 2, 2, 1, 2
    assert of_class(result, "dog").scores == expected
    assert of_class(result, "cat").scores == [0] * 20


def test_areas_at_their_edges(tmp_path):
    sides = [(31.9, 32), (32, 32), (96, 95.9), (96, 96)]
    rows = [(0, 0, 0, w, h, 0.9, 0) for w, h in sides]
    result = statistics(make_run(tmp_path, Case(status=[USED], kept=rows, size=(200, 200))))
    assert of_class(result, "cat").sizes == {"small": 1, "medium": 2, "large": 1}


def test_dropped_images_count_for_what_is_raw_only(tmp_path):
    rows = [(i, 1, 1, 20, 20, 0.9, 0) for i in range(4)]
    case = Case(status=[USED, UNCERTAIN, AMBIGUOUS, FAILED], kept=rows[:3], ignored=rows[:3])
    result = statistics(make_run(tmp_path, case))
    cat = of_class(result, "cat")
    assert (cat.raw, cat.kept, cat.ignored) == (6, 1, 1)
    assert result.images["used"] == 1 and result.mean_boxes == 1


def test_detections_that_are_no_numbers_are_left_out(tmp_path):
    rows = [(0, 1, 1, 20, 20, np.nan, 0), (0, 1, np.inf, 20, 20, 0.4, 0), (0, 1, 1, 9, 9, 0.2, 0)]
    result = statistics(make_run(tmp_path, Case(status=[USED], merged=rows)))
    assert of_class(result, "cat").raw == 1 and sum(of_class(result, "cat").scores) == 1


def test_against_loops(tmp_path):
    generator = np.random.default_rng(0)
    status = generator.choice([USED, USED, FAILED, UNCERTAIN], 23).tolist()
    rows = []
    for i in range(23):
        for _ in range(generator.integers(6) if status[i] == USED else 0):
            x, y = generator.uniform(0, 30, 2)
            w, h = generator.uniform(5, 60, 2)
            rows.append((i, x, y, x + w, y + h, generator.uniform(0.5, 1), generator.integers(3)))
    rows += [(5, 1, 1, 5, 5, 0.7, 2)] * (MOST_BOXES + 7) * (status[5] == USED)
    run = make_run(tmp_path, Case(status=status, kept=rows, shard_size=4))
    result = statistics(run)
    counts = [0] * (MOST_BOXES + 1)
    for i in range(23):
        if status[i] == USED:
            counts[min(sum(r[0] == i for r in rows), MOST_BOXES)] += 1
    assert result.boxes_per_image == counts and counts[MOST_BOXES] == 1
    assert result.mean_boxes == pytest.approx(len(rows) / status.count(USED))
    for c, x in enumerate(result.classes):
        mine = [r for r in rows if r[6] == c]
        assert x.kept == len(mine)
        small = sum((r[3] - r[1]) * (r[4] - r[2]) < 1024 for r in mine)
        assert x.sizes["small"] == small
        for b in range(20):
            assert x.scores[b] == sum(b / 20 <= r[5] < (b + 1) / 20 for r in mine)


def test_shares_against_labels(tmp_path):
    # 6 cats and 2 dogs; people have labelled 1 cat, 8 dogs, 1 fish, and know no birds
    kept = [(0, i, 1, 30, 30, 0.9, 0) for i in range(6)] + [
        (1, i, 1, 30, 30, 0.9, 1) for i in (0, 1)
    ]
    run = make_run(tmp_path, Case(status=[USED, USED], kept=kept + [(1, 1, 1, 9, 9, 0.9, 2)]))
    boxes = [(0, 1, 1, 9, 9, 0)] + [(0, 1, 1, 9, 9, 1)] * 8 + [(1, 1, 1, 9, 9, 2)]
    crowd = [(1, 1, 1, 9, 9, 0, 1)] * 5
    result = statistics(run, labelled=label_set(run, boxes + crowd, ("cat", "dog", "fish")))
    cat, dog, bird = result.classes
    assert (cat.share, cat.labelled_share) == pytest.approx((6 / 8, 1 / 9))
    assert (dog.share, dog.labelled_share) == pytest.approx((2 / 8, 8 / 9))
    assert cat.share_ratio == pytest.approx(6.75) and cat.alarm
    assert dog.share_ratio == pytest.approx(0.28125) and dog.alarm
    assert (bird.share, bird.share_ratio, bird.alarm) == (None, None, False)
    words = alarms(result)
    assert any("more frequent" in x and "cat (6.8 times)" in x for x in words)
    assert any("less frequent" in x and "dog (0.28 times)" in x for x in words)


@pytest.mark.parametrize("cats, loud", [(1, True), (2, False), (18, False), (19, True)])
def test_alarms_begin_at_three_times(tmp_path, cats, loud):
    # people: half of 12 boxes are cats; 6 of 12 expected
    run = make_run(tmp_path, Case(status=[USED], kept=[(0, 1, 1, 9, 9, 0.9, 0)]))
    labels = label_set(run, [(0, 1, 1, 9, 9, 0)] * 6 + [(0, 1, 1, 9, 9, 1)] * 6)
    x = of_class(statistics(run, labelled=labels), "cat")
    x.share, x.labelled_share = cats / 36, 6 / 36
    assert x.alarm == loud


def test_labels_that_have_nothing_to_do_with_the_run(tmp_path):
    run = make_run(tmp_path / "a", usual_case())
    other = make_run(tmp_path / "b", Case(status=[USED], names=["x.png"]))
    labels = label_set(other, [(0, 1, 1, 9, 9, 0)])
    with pytest.raises(ConfigError, match="None of the images of people"):
        statistics(run, truth=labels)
    fish = label_set(run, [(0, 1, 1, 9, 9, 0)], ("fish",))
    with pytest.raises(ConfigError, match="None of the classes of people"):
        statistics(run, truth=fish)
    with pytest.raises(ConfigError, match="no box of any of the run's classes"):
        statistics(run, labelled=fish)


def test_a_run_without_boxes_or_images(tmp_path):
    result = statistics(make_run(tmp_path, Case(status=[FAILED, FAILED])))
    assert result.mean_boxes == 0 and result.images["used"] == 0
    assert alarms(result)[0].startswith("No image is used")


def test_a_run_that_was_not_filtered(tmp_path):
    run = make_run(tmp_path, usual_case())
    (run.folder / "filter.json").unlink()
    with pytest.raises(RunError, match="run the stage filter first"):
        statistics(run)


def test_throughput_is_what_the_run_has_noted(tmp_path):
    run = make_run(tmp_path, usual_case())
    (run.folder / "speed").mkdir()
    noted = {"ended": "2025-01-01", "teachers": {"other": {"images": 24, "seconds": 2}}}
    (run.folder / "speed" / "a.json").write_text(json.dumps(noted))
    assert statistics(run).throughput == speeds(run)
    assert speeds(run)["other"]["images_per_second"] == 12


def test_the_record_is_json_and_complete(tmp_path):
    run = make_run(tmp_path, usual_case())
    labels = label_set(run, [(0, 10, 10, 40, 50, 0)])
    record = json.loads(json.dumps(statistics(run, labels, labels).record(), allow_nan=False))
    assert record["classes"][0]["quality"]["precision"] == 1
    assert record["quality"]["precision"] == 0.5
    assert record["classes"][0]["share_ratio"] == pytest.approx(2 / 3)
    assert record["sizes"]["medium"] == 2 and record["quality"]["objects"] == 1
