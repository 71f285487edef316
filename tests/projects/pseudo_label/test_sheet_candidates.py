"""Which images a check sheet shows, against sorting all of them."""

import numpy as np
import pytest
from cases import Case, detections, make_run, random_case

from kd_d2.projects.pseudo_label.labelled_run import LabelledRun
from kd_d2.projects.pseudo_label.shards import FAILED, USED
from kd_d2.projects.pseudo_label.sheet import STRATA
from kd_d2.projects.pseudo_label.sheet_candidates import Best, Candidates


def chosen(run, cells=5, most=100, seed=0):
    labels = LabelledRun(run)
    candidates = Candidates(labels, cells, most, seed)
    for part in labels.shards("test"):
        candidates.add(part)
    return {stratum: candidates.chosen(stratum) for stratum in STRATA}


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    case = random_case(31)
    return case, make_run(tmp_path_factory.mktemp("run"), case)


def per_image(case, rows):
    return np.bincount([r[0] for r in rows], minlength=len(case.status))


def test_best_keeps_the_lowest_of_each_group():
    generator = np.random.default_rng(0)
    n = 200
    group, key = generator.integers(0, 4, n), generator.integers(0, 30, n).astype(float)
    found = detections([(i // 3, 0, 0, 1, 1, 0.5, int(group[i])) for i in range(n)])
    best = Best(5)
    for first in range(0, n, 37):
        part = slice(first, first + 37)
        best.add(group[part], key[part], found[part])
        assert len(best._found) <= 4 * 5
    for g in range(4):
        rows = sorted((key[i], found.image[i]) for i in range(n) if group[i] == g)[:5]
        keys, kept = best.of_group(g)
        assert list(zip(keys, kept.image)) == rows
        assert set(kept.category) == {g}


def test_most_boxes(some):
    case, run = some
    counts = per_image(case, case.kept)
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))[:5]
    assert [(x.image, x.count) for x in chosen(run)["most"]] == [(i, counts[i]) for i in order]


def test_images_without_boxes(some):
    case, run = some
    empty = {
        i for i, n in enumerate(per_image(case, case.kept)) if case.status[i] == USED and not n
    }
    assert len(empty) > 2
    assert {x.image for x in chosen(run, cells=50)["empty"]} == empty
    assert {x.image for x in chosen(run, cells=2)["empty"]} < empty


def test_the_lowest_kept_and_the_highest_dropped_of_each_class(some):
    case, run = some
    cells = chosen(run, cells=6)  # two for each of three classes
    for stratum, rows in (
        ("lowest", sorted(case.kept, key=lambda r: r[5])),
        ("dropped", sorted(case.merged, key=lambda r: -r[5])),
    ):
        expected = [r for c in range(3) for r in [r for r in rows if r[6] == c][:2]]
        shown = [(x.image, x.focus.score[0], x.focus.category[0]) for x in cells[stratum]]
        assert shown == [(r[0], pytest.approx(r[5]), r[6]) for r in expected]


def test_what_has_reached_its_threshold_was_not_dropped_for_its_score(tmp_path):
    # of too small a size, say
    rows = [(0, 1, 1, 3, 3, 0.95, 0), (0, 1, 1, 30, 30, 0.5, 0), (0, 1, 1, 30, 30, 0.45, 0)]
    cells = chosen(make_run(tmp_path, Case(status=[USED], merged=rows)))["dropped"]
    assert [float(x.focus.score[0]) for x in cells] == pytest.approx([0.45])


def test_disagreement(some):
    case, run = some
    doubtful = per_image(case, [r for r in case.kept if r[8] < 2])
    order = sorted(
        (i for i in range(len(doubtful)) if doubtful[i]), key=lambda i: (-doubtful[i], i)
    )
    cells = chosen(run)["disagreement"]
    assert [(x.image, x.count) for x in cells] == [(i, doubtful[i]) for i in order[:5]]


def test_a_class_that_one_teacher_knows_is_not_in_doubt(tmp_path):
    case = Case(
        status=[USED, USED],
        kept=[(0, 1, 1, 20, 20, 0.9, 0, 0, 1), (1, 1, 1, 20, 20, 0.9, 1, 0, 1)],
        known_by={"cat": ["big"], "dog": ["big", "other"], "bird": []},
    )
    assert [x.image for x in chosen(make_run(tmp_path, case))["disagreement"]] == [1]


def test_rarest_classes(tmp_path):
    kept = [(i, 1, 1, 20, 20, 0.9, 0) for i in range(9)]
    kept += [(3, 1, 1, 20, 20, 0.7, 2), (3, 5, 5, 20, 20, 0.8, 2), (7, 1, 1, 20, 20, 0.9, 2)]
    cells = chosen(make_run(tmp_path, Case(status=[USED] * 9, kept=kept)), cells=4)["rarest"]
    # birds are rarer than cats, and dogs there are none; an image once, with its best bird
    assert {(x.image, round(float(x.focus.score[0]), 2)) for x in cells[:2]} == {(3, 0.8), (7, 0.9)}
    assert [int(x.focus.category[0]) for x in cells] == [2, 2, 0, 0]
    assert [x.count for x in cells] == [3, 3, 9, 9]


def test_chance_depends_on_the_seed_alone(some):
    case, run = some
    images = {seed: [x.image for x in chosen(run, seed=seed)["random"]] for seed in (0, 1)}
    assert images[0] == [x.image for x in chosen(run)["random"]]
    assert images[0] != images[1]
    for shown in images.values():
        assert len(set(shown)) == 5 and all(case.status[i] == USED for i in shown)


def test_everybody_has_the_same_chance(tmp_path):
    run = make_run(tmp_path, Case(status=[USED] * 12, shard_size=5))
    counts = np.zeros(12)
    for seed in range(120):
        counts[[x.image for x in chosen(run, cells=3, seed=seed)["random"]]] += 1
    assert counts.sum() == 360 and (counts > 12).all() and (counts < 55).all()
    # the shards are not all treated alike
    shown = [[x.image % 5 for x in chosen(run, cells=3, seed=s)["random"]] for s in range(20)]
    assert sum(places[0] != places[1] for places in shown) > 10


def test_many_classes_are_shown_in_part(tmp_path):
    names = tuple(f"class {i}" for i in range(30))
    kept = [(0, 1, 1, 20, 20, 0.9, c) for c in range(30) for _ in range(30 - c)]
    case = Case(
        status=[USED], kept=kept, categories=names, t_keep=(0.5,) * 30, t_ignore=(0.3,) * 30
    )
    run = make_run(tmp_path, case)
    assert len(chosen(run, cells=5)["lowest"]) == 30
    shown = [int(x.focus.category[0]) for x in chosen(run, cells=5, most=4)["lowest"]]
    assert shown == [0, 10, 19, 29]  # evenly from frequent to rare


def test_a_run_without_boxes_or_images(tmp_path):
    cells = chosen(make_run(tmp_path, Case(status=[FAILED, FAILED])))
    assert all(x == [] for x in cells.values())
