import pytest
from demo_parts.report import markdown_table, text_table, write_report
from demo_parts.results import Results, findings, table, verdict

from kd_d2.experiments.metrics import Metrics


def run(ap, seconds=0.1, teacher=None, curve=None, tea=None):
    """Metrics of 90 iterations with evaluations at 30, 60 and 90."""
    records = {}
    for k, value in enumerate(curve or [ap / 3, 2 * ap / 3, ap]):
        record = {"total_loss": 1.0, "time": seconds, "loss_cls": 0.5, "bbox/AP": value}
        record |= {"bbox/AP50": 2 * value, "bbox/APs": value / 2, "bbox/APl": float("nan")}
        if tea is not None:
            record["loss_cls.tea"] = tea[k]
        if teacher is not None:
            record["bbox_teacher/AP"] = teacher
        records[30 * k + 29] = record
    return Metrics(records)


def words(**aps):
    return "\n".join(findings(Results(*(run(aps[k]) for k in ("plain", "lgd", "control")))))


def test_the_table_has_differences_to_plain_and_no_empty_column():
    results = Results(run(20.0), run(26.5, 0.16, teacher=40.0), run(24.0, 0.15))
    head, plain, control, lgd, teacher = table(results)
    assert head == ["", "AP", "AP50", "APs", "step time", "AP vs plain"]
    assert plain[1:] == ["20.0", "40.0", "10.0", "100 ms", ""]
    assert control[1:] == ["24.0", "48.0", "12.0", "150 ms", "+4.0"]
    assert lgd[1:] == ["26.5", "53.0", "13.2", "160 ms", "+6.5"]
    assert teacher[1:] == ["40.0", "-", "-", "-", "+20.0"]


def test_where_a_gain_comes_from():
    text = words(plain=20.0, control=27.0, lgd=26.0)
    assert "LGD reached 26.0 AP" in text and "+6.0 AP, a gain" in text
    assert "(control minus plain): +7.0 AP, a gain" in text
    assert "(LGD minus control): -1.0 AP, no clear difference" in text
    assert "One seed is one seed" in text


def test_a_loss_is_called_a_loss():
    text = words(plain=30.0, control=24.0, lgd=15.0)
    assert "plainly 30.0 AP" in text and "-15.0 AP, a loss" in text
    assert "(control minus plain): -6.0 AP, a loss" in text
    assert "(LGD minus control): -9.0 AP, a loss" in text
    assert "a gain" not in text


def test_the_sum_of_the_parts_is_the_whole():
    results = Results(run(20.0), run(26.5), run(24.0))
    whole, branch, feature = (
        float(sentence.split(" AP, ")[-2].split()[-1]) for sentence in findings(results)[:3]
    )
    assert whole == pytest.approx(branch + feature) == 6.5


@pytest.mark.parametrize("difference", [1.9, -1.9, 0.0])
def test_small_differences_mean_nothing(difference):
    assert verdict(difference) == "no clear difference"


def test_the_teacher_is_never_a_result():
    better = Results(run(20.0), run(26.0, teacher=50.0), run(24.0))
    assert "50.0 AP; that is a diagnosis, never a result" in "\n".join(findings(better))
    worse = Results(run(20.0), run(26.0, teacher=25.0), run(24.0))
    assert "it is no better than its student" in "\n".join(findings(worse))


@pytest.mark.parametrize(
    ("tea", "expected"),
    [
        ([0.7, 0.4, 0.3], "stays below the student's from iteration 30 of 90 on"),
        ([0.7, 0.4, 0.6], "the teacher has not overtaken its student"),
    ],
)
def test_whether_the_teacher_overtook(tea, expected):
    results = Results(run(20.0), run(26.0, tea=tea), run(24.0))
    assert expected in "\n".join(findings(results))


def test_the_price_of_a_step():
    text = "\n".join(findings(Results(run(20.0, 0.1), run(26.0, 0.16), run(24.0))))
    assert "1.60 times as long" in text and "144 iterations instead of 90" in text


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([10.0, 29.5, 30.0], "had settled: the last third of its schedule brought +0.5 AP"),
        ([10.0, 20.0, 30.0], "had not settled: the last third of its schedule still brought +10.0"),
        ([0.1, 0.2, 0.3], "had hardly begun to learn (0.3 AP)"),
    ],
)
def test_whether_the_plain_student_had_settled(curve, expected):
    text = "\n".join(findings(Results(run(0, curve=curve), run(26.0), run(24.0))))
    assert expected in text


def test_detectors_that_find_nothing_are_reported(tmp_path):
    blind = Metrics({5: {"total_loss": 1.0, "bbox/AP": float("nan")}})
    results = Results(blind, blind, blind)
    assert table(results)[1] == ["plain student", "-", "-", ""]
    assert "LGD reached 0.0 AP" in findings(results)[0]
    write_report(tmp_path / "report.md", results, [], [], "a machine")


def test_tables_for_people():
    cells = [["", "AP"], ["plain", "7.0"], ["a long name", "12.5"]]
    assert text_table(cells).splitlines() == [
        "               AP",
        "-----------------",
        "plain         7.0",
        "a long name  12.5",
    ]
    assert markdown_table(cells).splitlines()[1:3] == ["| --- | ---: |", "| plain | 7.0 |"]


def test_the_report_shows_and_explains(tmp_path):
    results = Results(run(20.0), run(26.0), run(24.0))
    pictures = [("Curves", "curves.png", "What is to be seen.")]
    path = tmp_path / "report.md"
    write_report(path, results, pictures, ["python train_net.py"], "Z80 with 1 core")
    text = path.read_text()
    assert "![Curves](curves.png)\n\nWhat is to be seen." in text
    assert "```bash\npython train_net.py\n```" in text and "Z80 with 1 core" in text
    assert "| LGD student | 26.0 |" in text and "- LGD reached 26.0 AP" in text
