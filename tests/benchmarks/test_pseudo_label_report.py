from pseudo_label_plan import FEW
from pseudo_label_report import draw_few_labels, tables

from kd_d2.experiments.metrics import SCORES


def result(row, percent, seed, ap, part="labels"):
    scores = dict.fromkeys(SCORES) | {"AP": ap}
    return {"part": part, "row": row, "percent": percent, "seed": seed, "scores": scores}


RESULTS = [
    *(result("labels", 10, seed, ap) for seed, ap in ((1, 10.0), (2, 14.0))),
    *(result("b_c", 10, seed, ap) for seed, ap in ((1, 30.0), (2, 20.0), (3, 40.0))),
    result("b_c", 5, 1, None),
    *(result("b", 0, seed, ap) for seed, ap in ((1, 20.0), (2, 21.0))),
    *(result("all_labels", 100, seed, ap) for seed, ap in ((1, 25.0), (2, 17.0))),
    result("teacher", 0, 1, 50.0),
]


def cells(text):
    """Lines of a table by their first cells."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def test_tables_of_means_and_deviations():
    text = tables(RESULTS).split("\n\n")
    assert text[0] == "**A teacher that has seen all labels**" and len(text) == 3
    found = cells(text[1])
    assert found == {
        "AP with": ["0 % labels", "5 % labels", "10 % labels", "100 % labels", "seeds"],
        "labels alone, iterations of B + C": ["-", "-", "12.0 ± 2.8", "-", "2"],
        "B: pseudo labels alone": ["20.5 ± 0.7", "-", "-", "-", "2"],
        "B + C: then labels": ["-", "0.0", "30.0 ± 10.0", "-", "3"],
        "all labels, iterations of B + C at 20 %": ["-", "-", "-", "21.0 ± 5.7", "2"],
        "teacher (all labels)": ["-", "-", "-", "50.0", "1"],
    }


def test_differences_are_paired_by_seed():
    lines = tables(RESULTS).split("\n\n")[2].splitlines()[2:]
    assert lines == [
        "| labels alone, iterations of B + C | 10 % | -9.0 ± 8.5 |",
        "| B + C: then labels | 5 % | -25.0 |",
        "| B + C: then labels | 10 % | +4.0 ± 1.4 |",  # nobody has all labels with seed 3
    ]
    alone = [r for r in RESULTS if r["row"] != "all_labels"]
    assert "against" not in tables(alone)


def test_labels_that_count_are_the_teacher_s_own_and_those_of_the_target():
    same = [result("teacher", 0, 1, 9.0, "same_subset"), result("b", 0, 1, 8.0, "same_subset")]
    domain = [result("source", 100, 1, 5.0, "domain"), result("oracle", 100, 1, 6.0, "domain")]
    first, second = tables([*domain, *same]).split("\n\n**")
    assert cells(first)["teacher"] == ["-", "9.0", "1"]
    assert cells(first)["AP with"][1] == f"{FEW} % labels"
    assert cells(second)["student on labels of the source"] == ["5.0", "-", "1"]
    assert tables([]) == ""


def test_the_picture_is_drawn(tmp_path):
    draw_few_labels(tmp_path / "few.png", RESULTS)
    draw_few_labels(tmp_path / "none.png", [])
    assert (tmp_path / "few.png").stat().st_size > (tmp_path / "none.png").stat().st_size > 5_000
