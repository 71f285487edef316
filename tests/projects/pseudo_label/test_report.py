"""The report of a run, as a program and as a person reads it."""

import base64
import json
import re
from xml.etree import ElementTree

import pytest
from cases import Case, label_set, make_run, usual_case
from html_page import Page

from kd_d2.projects.pseudo_label.alarms import alarms
from kd_d2.projects.pseudo_label.report import write_report
from kd_d2.projects.pseudo_label.report_figures import AMBER, BLUE, GREY, figures, spark
from kd_d2.projects.pseudo_label.report_tables import class_table, tables
from kd_d2.projects.pseudo_label.shards import FAILED, USED
from kd_d2.projects.pseudo_label.statistics import statistics


@pytest.fixture
def judged(tmp_path):
    """A run with an alarm, labels, and a class whose name is no HTML."""
    case = usual_case()
    case.categories = ("cat", "dog & <b>|", "bird")
    run = make_run(tmp_path, case)
    boxes = [(0, 10, 10, 40, 50, 0)] + [(1, 1, 1, 9, 9, 2)] * 9
    labels = label_set(run, boxes, case.categories)
    return run, statistics(run, labels, labels)


def test_the_three_files(judged):
    run, result = judged
    paths = write_report(run, result)
    assert [x.name for x in paths] == ["report.json", "report.md", "report.html"]
    assert all(x.parent == run.folder / "report" for x in paths)
    content = json.loads(paths[0].read_text())
    assert content["alarms"] == alarms(result) and len(content["alarms"]) >= 2
    assert content["classes"][1]["name"] == "dog & <b>|" and content["classes"][1]["kept"] == 1
    assert content["provenance"]["filter"]["t_keep"]["cat"] == 0.5


def test_the_page_needs_no_other_file(judged):
    page = Page(write_report(*judged)[2].read_text())
    assert page.targets and all(x.startswith("data:image/svg+xml;base64,") for x in page.targets)


def test_the_page_begins_with_what_is_suspicious(judged):
    run, result = judged
    words = " ".join(Page(write_report(run, result)[2].read_text()).words)
    places = [words.index(x) for x in ("Look at this first", *alarms(result), "Classes")]
    assert places == sorted(places)
    assert "dog & <b>|" in words
    text = write_report(run, result)[1].read_text()
    places = [text.index(x) for x in ("Look at this first", *alarms(result), "## Classes")]
    assert places == sorted(places)


def test_quality_stands_beside_what_to_mind(judged, tmp_path):
    words = "too good if a teacher was trained on the images that they are measured on"
    _, markdown, page = write_report(*judged)
    text = markdown.read_text()
    assert text.index("precision 33 %") < text.index(words) < text.index("Look at this first")
    shown = page.read_text()
    assert shown.index("precision</div>") < shown.index(words) < shown.index("Look at this first")
    run = make_run(tmp_path / "without", usual_case())
    for path in write_report(run, statistics(run)):
        assert words not in path.read_text()


def test_equal_numbers_give_equal_bytes(judged):
    first = [x.read_bytes() for x in write_report(*judged)]
    assert first == [x.read_bytes() for x in write_report(*judged)]


def test_figures_are_svg(judged):
    found = figures(judged[1])
    assert list(found) == [
        "Pseudo boxes per image", "Scores of all merged detections", "How frequent the classes are",
        "Precision and recall",
    ]  # fmt: skip
    for svg in found.values():
        assert ElementTree.fromstring(svg.encode()).tag.endswith("svg")
    uri = Page(write_report(*judged)[2].read_text()).targets[0]
    assert base64.b64decode(uri.partition(",")[2]).decode() == found["Pseudo boxes per image"]


def test_the_small_histogram_of_a_class(tmp_path):
    scores = [0.02] * 4 + [0.32] + [0.52] * 9
    rows = [(0, 1, 1, 20, 20, s, 0) for s in scores]
    x = statistics(make_run(tmp_path, Case(status=[USED], merged=rows))).classes[0]
    # a bar for 4 of 9 is 2/3 as high as the highest, which is 20
    bars = re.findall(
        r'x="(\d+)" y="([\d.]+)" width="4.4" height="([\d.]+)" fill="(#\w+)"', spark(x)
    )
    assert bars == [
        ("0", "6.7", "13.3", GREY), ("30", "13.3", "6.7", AMBER), ("50", "0.0", "20.0", BLUE)
    ]  # fmt: skip


def test_class_table(judged):
    table = class_table(judged[1])
    assert table.head[:7] == [
        "class", "kept", "ignored", "raw", "t_keep", "t_ignore", "teachers' t"
    ]  # fmt: skip
    assert [row[0] for row in table.rows] == ["cat", "dog & <b>|", "bird", "all classes"]
    assert table.rows[0][1:7] == ["2", "0", "3", "0.50", "0.30", "0.50 / 0.50"]
    # 2 of 3 boxes are cats, and 1 of 10 labels; 0 of 3 and 9 of 10 are birds
    assert table.rows[0][7:10] == ["66.7 %", "10.0 %", "6.67 !"]
    assert table.rows[2][7:10] == ["0.0 %", "90.0 %", "0.00 !"]
    assert table.loud == {0, 2}
    # of three boxes in labelled images, one is right, with an IoU of 1; 9 birds are missing
    assert table.rows[3][-7:-4] == ["10", "0.33", "0.10"]
    assert table.rows[3][-2:] == ["1.00", "90.0 %"]
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_without_labels_their_columns_are_left_out(tmp_path):
    result = statistics(make_run(tmp_path, usual_case()))
    assert class_table(result).head[-1] == "teachers' t"
    assert list(figures(result)) == ["Pseudo boxes per image", "Scores of all merged detections"]
    titles = [x.title for x in tables(result)]
    assert titles == ["Images", "Sizes of the pseudo boxes", "Filters", "Agreement of the teachers"]


def test_other_tables(judged):
    found = {x.title: x for x in tables(judged[1])}
    images = {row[0]: row[1:] for row in found["Images"].rows}
    assert images["used"] == ["3", "60.0 %"] and images["could not be read"] == ["1", "20.0 %"]
    assert found["Filters"].rows[1] == ["small", "3", "too small"]
    assert found["Agreement of the teachers"].rows == [
        ["big", "", "75.0 %"],
        ["other", "75.0 %", ""],
    ]
    assert found["Sizes of the pseudo boxes"].rows[0][1:] == ["1", "33.3 %"]


def test_a_run_without_anything(tmp_path):
    run = make_run(tmp_path, Case(status=[FAILED], teachers=("one",)))
    paths = write_report(run, statistics(run))
    Page(paths[2].read_text())
    assert "No image is used" in paths[1].read_text()


def test_nothing_stands_out(tmp_path):
    kept = [(0, 1, 1, 9, 9 + c, 0.9, c) for c in range(3)]
    run = make_run(tmp_path, Case(status=[USED], kept=kept))
    paths = write_report(run, statistics(run))
    assert all("Nothing stands out" in x.read_text() for x in paths[1:])
