import json

import pytest

from kd_d2.experiments.metrics import Metrics


def write(path, *records, tail=""):
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    return Metrics.read(path)


def test_a_run_that_has_not_begun():
    metrics = Metrics.read("/nowhere/metrics.json")
    assert metrics.iterations_done() == 0
    assert metrics.latest("bbox/AP") is None
    assert metrics.seconds_per_step() is None
    assert metrics.series("total_loss") == ([], [])


def test_iterations_count_from_one_and_half_a_line_is_not_read(tmp_path):
    metrics = write(
        tmp_path / "m.json",
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 2.0},
        tail='{"iteration": 59, "total_',
    )
    assert metrics.iterations_done() == 40
    assert metrics.series("total_loss") == ([20, 40], [3.0, 2.0])


def test_the_last_evaluation_belongs_to_the_last_iteration(tmp_path):
    metrics = write(
        tmp_path / "m.json",
        {"iteration": 19, "total_loss": 3.0, "bbox/AP": 1.0},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 40, "bbox/AP": 7.0},
    )
    assert metrics.iterations_done() == 40
    assert metrics.series("bbox/AP") == ([20, 40], [1.0, 7.0])
    assert metrics.latest("bbox/AP") == 7.0
    assert metrics.first("bbox/AP") == 1.0 and metrics.first("nothing") is None


def test_a_resumed_run_overwrites_what_it_repeats(tmp_path):
    metrics = write(
        tmp_path / "m.json",
        {"iteration": 19, "total_loss": 3.0},
        {"iteration": 39, "total_loss": 2.0},
        {"iteration": 39, "total_loss": 2.5},
    )
    assert metrics.series("total_loss") == ([20, 40], [3.0, 2.5])


def test_what_was_not_there_to_be_found_has_no_score(tmp_path):
    metrics = write(
        tmp_path / "m.json",
        {"iteration": 0, "total_loss": 1.0, "bbox/AP": 5.0, "bbox/APl": float("nan")},
    )
    assert metrics.scores()["AP"] == 5.0
    assert metrics.scores()["APl"] is None and metrics.scores()["AP75"] is None
    assert metrics.scores("bbox_teacher")["AP"] is None


def test_step_time_is_the_mean_without_the_first_records(tmp_path):
    times = [9.0, 9.0] + [1.0] * 9 + [2.0] * 9
    records = ({"iteration": i, "total_loss": 1.0, "time": t} for i, t in enumerate(times))
    assert write(tmp_path / "m.json", *records).seconds_per_step() == pytest.approx(26 / 17)
    assert write(tmp_path / "n.json", {"iteration": 0, "time": 4.0}).seconds_per_step() == 4.0


def test_the_students_own_loss_leaves_teacher_and_distillation_out(tmp_path):
    metrics = write(
        tmp_path / "m.json",
        {"iteration": 0, "loss_cls": 1.0, "loss_box_reg": 2.0, "loss_centerness": 4.0}
        | {"loss_cls_stage1": 0.5, "loss_pos": 0.25, "loss_pgd_cls_p3": 64.0}
        | {"loss_cls.tea": 8.0, "loss_distill": 16.0, "loss_pkd": 32.0, "total_loss": 63.0},
    )
    assert metrics.student_loss() == ([1], [7.75])
