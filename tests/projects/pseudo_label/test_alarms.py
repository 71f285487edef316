"""What is suspicious, and what is not."""

import json

import pytest
from cases import Case, label_set, make_run

from kd_d2.projects.pseudo_label.alarms import alarms
from kd_d2.projects.pseudo_label.report_tables import class_table
from kd_d2.projects.pseudo_label.shards import FAILED, UNCERTAIN, USED
from kd_d2.projects.pseudo_label.statistics import statistics


@pytest.mark.parametrize(
    "case, words",
    [
        (Case(status=[USED] + [FAILED] * 2), "could not be read"),
        (Case(status=[USED, UNCERTAIN, USED]), "33.3 %) of the images are dropped"),
        (Case(status=[USED, USED]), "only background"),
        (Case(status=[USED], kept=[(0, 1, 1, 9, 9, 0.9, 0)] * 100), "100 pseudo boxes or more"),
        (Case(status=[USED], kept=[(0, 1, 1, 9, 9, 0.9, 0)]), "no pseudo box of dog, bird"),
        (
            Case(status=[USED], known_by={"cat": ["big"], "dog": [], "bird": ["big"]}),
            "No teacher knows dog",
        ),
        (
            Case(
                status=[USED],
                kept=[(0, 1, 1, 9, 9, 0.9, 0)],
                ignored=[(0, 1, 1, 9, 9, 0.4, 0)] * 2,
            ),
            "more ignore boxes (2) than pseudo boxes (1)",
        ),
    ],
)
def test_alarms(tmp_path, case, words):
    assert any(words in x for x in alarms(statistics(make_run(tmp_path, case))))


def good_case():
    return Case(status=[USED], kept=[(0, 1, 1, 9, 9 + c, 0.9, c) for c in range(3)])


def test_nothing_is_suspicious(tmp_path):
    assert alarms(statistics(make_run(tmp_path, good_case()))) == []


def test_alarms_of_settings_and_quality(tmp_path):
    run = make_run(tmp_path, good_case())
    path = run.folder / "merge.json"
    merge = json.loads(path.read_text())
    merge["thresholds"]["big"]["cat"] = 0.85
    merge["agreement"] = {"big": {"other": 0.1}, "other": {"big": None}}
    path.write_text(json.dumps(merge))
    result = statistics(run)
    words = alarms(result)
    assert "The threshold is above 0.8 for cat" in words[0]
    assert "Only 10 % of the boxes of big are found by other" in words[1] and len(words) == 2


@pytest.mark.parametrize("dogs, loud", [(9, False), (10, True), (50, True)])
def test_classes_without_any_label(tmp_path, dogs, loud):
    """People know dogs, but have labelled none; of birds they know nothing."""
    kept = [(0, 1, 1, 30, 30, 0.9, 0)] * 50 + [(0, 1, 1, 30, 30, 0.9, 1)] * dogs
    run = make_run(tmp_path, Case(status=[USED], kept=kept + [(0, 1, 1, 9, 9, 0.9, 2)] * 20))
    labels = label_set(run, [(0, 1, 1, 9, 9, 0)] * 30, ("cat", "dog"))
    result = statistics(run, labels)
    assert [x.alarm for x in result.classes] == [False, loud, False]
    assert result.classes[1].share_ratio is None
    words = [x for x in alarms(result) if "people" in x]
    expected = f"people has not a single box of dog ({dogs} pseudo boxes). Look at"
    assert [x.startswith(expected) for x in words] == [True] * loud
    table = class_table(result)
    place = [row[0] for row in table.rows].index("dog")
    assert table.loud == ({place} if loud else set())
    assert table.rows[place][-1] == "–" + " !" * loud


def test_alarms_of_quality(tmp_path):
    kept = [(0, 1 + i, 1, 21 + i, 21, 0.9, c) for i in range(12) for c in range(3)]
    run = make_run(tmp_path, Case(status=[USED], kept=kept))
    boxes = [(0, 1, 1, 21, 21, 0)] + [(0, 60, 5 * i, 70, 5 * i + 4, 1) for i in range(10)]
    words = alarms(statistics(run, truth=label_set(run, boxes)))
    assert any("half of the pseudo boxes are right" in x and "dog (0 %)" in x for x in words)
    assert any("have no pseudo box: dog (100 %)" in x for x in words)
