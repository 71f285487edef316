import json
from pathlib import Path

import pytest
import shapes_report
import shapes_table
from shapes_report import draw_curves, draw_gains, mean_sd, summary
from shapes_table import plan

from kd_d2.engine import load_config

OF_LABELS = ("kd", "lad", "solad", "colad", "colad_fisher", "colad_self")  # by PAAs


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(shapes_table.ROOT)


def args(tmp_path, *argv):
    folders = ["--output", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    return shapes_table.parse_args([*folders, *argv])


def result(method, seed, ap, teacher=None, detector="retinanet", iterations=900):
    scores = dict.fromkeys(shapes_report.SCORES) | {"AP": ap}
    output = f"out/{detector}_{method}_{iterations}it_seed{seed}"
    return {
        "detector": detector,
        "method": method,
        "seed": seed,
        "iterations": iterations,
        "scores": scores,
        "teacher_scores": {"AP": teacher},
        "seconds_per_step": 0.2,
        "command": f"python train_net.py OUTPUT_DIR {output}",
    }


def test_masks_have_columns_of_their_own():
    results = [result("plain", 1, 20.0) | {"mask_scores": {"AP": 15.0}}]
    results += [result("lgd", 1, 24.0, teacher=50.0) | {"mask_scores": {"AP": 18.0}}]
    text = summary(results)
    assert "| mask AP | AP of its teacher | step | AP vs plain | mask AP vs plain |" in text
    assert row(text, "LGD")[-5:] == ["18.0", "50.0", "200 ms (1.00)", "+4.0", "+3.0"]
    assert "mask" not in summary([result("plain", 1, 20.0)])


def test_curves_are_drawn(tmp_path):
    runs = [
        result(method, seed, 9.0) | {"curve": [[100, 5.0], [200, 9.0 + seed]], "teacher_curve": t}
        for method, t in (("plain", []), ("lgd", [[100, 1.0], [200, 30.0]]))
        for seed in (1, 2)
    ]
    draw_curves(tmp_path / "curves.png", runs)
    draw_curves(tmp_path / "none.png", [])
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_memory_has_a_column_where_it_is_known():
    results = [result("plain", s, 10.0) | {"peak_memory": 800.0 + s} for s in (1, 3)]
    text = summary(results + [result("pkd", 1, 12.0)])
    assert "| step | memory | AP vs plain |" in text
    assert row(text, "plain student")[-2] == "802 MiB" and row(text, "PKD")[-2] == "-"
    assert "memory" not in summary([result("plain", 1, 10.0)])


def test_the_share_of_detection_has_a_column_where_it_is_known():
    results = [result("plain", 1, 10.0), result("pkd", 1, 12.0) | {"detection_share": 0.025}]
    text = summary([*results, result("cwd", 1, 12.0) | {"detection_share": None}])
    assert "| AP of its teacher | detection's share | step | AP vs plain |" in text
    shares = [row(text, name)[-3] for name in ("plain student", "PKD", "CWD")]
    assert shares == ["-", "2.5%", "-"]
    assert "share" not in summary(results[:1])


def test_a_method_with_a_factor_has_a_row_and_a_run_of_its_own(tmp_path):
    results = [result(m, 1, ap) for m, ap in (("pkd@0.1", 14.0), ("pkd", 12.0), ("plain", 9.0))]
    text = summary(results)
    assert [x.split("|")[1].strip() for x in text.splitlines()[4:]] == [
        "plain student",
        "PKD",
        "PKD x 0.1",
    ]
    assert row(text, "PKD x 0.1")[-1] == "+5.0"
    draw_gains(tmp_path / "gains.png", results)
    whole, tenth = plan(
        args(tmp_path, "--detectors", "atss", "--methods", "pgd", "pgd@0.1", "--seeds", "1")
    )
    assert whole.job.output != tenth.job.output and whole.teacher.job == tenth.teacher.job
    assert tenth.job.overrides["MODEL.KD.HEAD_WEIGHTS"] == "[0.1]"
    assert "MODEL.KD.HEAD_WEIGHTS" not in whole.job.overrides


@pytest.mark.parametrize("method", ["lgd@0.1", "plane", "pkd@half"])
def test_methods_that_there_are_not(method, tmp_path, capsys):
    with pytest.raises(SystemExit):
        args(tmp_path, "--methods", method)
    assert "pkd" in capsys.readouterr().err


def test_gains_are_drawn(tmp_path):
    runs = [result(m, s, ap + s) for m, ap in (("plain", 9.0), ("pkd", 12.0)) for s in (1, 2)]
    draw_gains(tmp_path / "gains.png", runs)
    draw_gains(tmp_path / "none.png", [])
    assert (tmp_path / "gains.png").stat().st_size > 5_000


def row(text, title):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_and_deviations():
    assert mean_sd([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_sd([-2.0], "+") == "-2.0"


def test_differences_are_paired_by_seed():
    results = [result("plain", s, ap) for s, ap in ((1, 10.0), (2, 30.0))]
    results += [result("lgd", s, ap, teacher=50.0) for s, ap in ((1, 15.0), (2, 35.0), (3, 40.0))]
    text = summary(results)
    assert (
        row(text, "plain student")[1:3] == ["2", "20.0 ± 14.1"]
        and row(text, "plain student")[-1] == ""
    )
    lgd = row(text, "LGD")
    assert lgd[1:3] == ["3", "30.0 ± 13.2"]
    assert lgd[-1] == "+5.0 ± 0.0"  # seed 3 has no plain run
    assert lgd[-3:-1] == ["50.0 ± 0.0", "200 ms (1.00)"]


def test_detectors_and_schedules_have_tables_of_their_own():
    text = summary(
        [result("plain", 1, 10.0), result("plain", 1, 20.0, iterations=1800)]
        + [result("plain", 1, 30.0, detector="fcos")]
    )
    assert [line for line in text.splitlines() if line.startswith("**")] == [
        "**fcos, 900 iterations**",
        "**retinanet, 900 iterations**",
        "**retinanet, 1800 iterations**",
    ]
    assert summary([]) == "No results yet."


def test_the_frozen_teacher_is_named_by_the_run_that_used_it():
    pkd = result("pkd", 1, 25.0)
    pkd["command"] = (
        "python train_net.py MODEL.KD.TEACHER.WEIGHTS "
        "out/retinanet_teacher_1800it_seed1/model_final.pth "
        "OUTPUT_DIR out/retinanet_pkd_900it_seed1"
    )
    used = result("teacher", 1, 44.0, iterations=1800)
    other = result("teacher", 1, 99.0, iterations=400)
    assert row(summary([pkd, used, other]), "PKD")[-3] == "44.0"


def test_the_plan_trains_one_teacher_for_all_seeds(tmp_path):
    runs = plan(
        args(tmp_path, "--detectors", "retinanet", "--seeds", "1", "2", "--iterations", "90")
    )
    assert [(r.method, r.seed) for r in runs] == [
        (m, s) for m in ("plain", "control", "lgd", "control_mlp", "lgd_mlp", "pkd") for s in (1, 2)
    ]
    assert {r.job.iterations for r in runs} == {90}
    assert len({r.job.output for r in runs}) == 2 * 6
    pkd = [r for r in runs if r.method == "pkd"]
    teachers = {r.teacher.job.output for r in pkd}
    assert len(teachers) == 1
    weights = str(teachers.pop() / "model_final.pth")
    assert all(r.job.overrides["MODEL.KD.TEACHER.WEIGHTS"] == weights for r in pkd)
    assert all(r.teacher is None for r in runs if r.method != "pkd")


def test_students_are_evaluated_as_often_as_wanted_and_their_teacher_for_its_curve(tmp_path):
    argv = ["--detectors", "atss", "--methods", "pkd", "--seeds", "1", "--iterations", "1200"]
    [run] = plan(args(tmp_path, *argv, "--evaluations", "1"))
    assert run.job.overrides["TEST.EVAL_PERIOD"] == "1200"
    assert run.teacher.job.overrides["TEST.EVAL_PERIOD"] == "160"


def test_inheritance_is_a_method_of_its_own(tmp_path):
    methods = ["inherit", "pgd_inherit"]
    control, pgd = plan(
        args(tmp_path, "--detectors", "atss", "--methods", *methods, "--seeds", "1")
    )
    assert control.job.overrides["MODEL.KD.HEAD_WEIGHTS"] == "[0.0]"
    assert pgd.job.overrides["MODEL.KD.HEADS"] == "['PGD']"
    assert {r.job.overrides["MODEL.KD.INHERIT"] for r in (control, pgd)} == {"['neck', 'head']"}


def test_a_result_counts_for_the_very_same_run_only(tmp_path):
    def first_run(*argv):
        arguments = args(tmp_path, "--detectors", "retinanet", "--methods", "plain", *argv)
        return arguments, plan(arguments)[0]

    arguments, run = first_run("--iterations", "3")
    assert not shapes_table.has_result(arguments, run)
    run.job.output.mkdir(parents=True)
    (run.job.output / "metrics.json").write_text(
        json.dumps({"iteration": 2, "total_loss": 1.0, "time": 0.5, "bbox/AP": 7.0}) + "\n"
    )
    shapes_table.write_result(arguments, run, {"cpu": "Z80"})
    (kept,) = shapes_report.read_results(arguments.results)
    assert (kept["method"], kept["seed"], kept["scores"]["AP"]) == ("plain", 1, 7.0)
    assert kept["command"].startswith("python train_net.py --config-file configs/quickstart/")
    assert shapes_table.has_result(arguments, run)
    assert not shapes_table.has_result(*first_run("--iterations", "3", "--anew"))
    assert not shapes_table.has_result(*first_run("--iterations", "4"))
    run.job.overrides["SOLVER.BASE_LR"] = "0.5"
    assert not shapes_table.has_result(arguments, run)


def test_a_method_without_a_config_is_left_out_with_a_word(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(shapes_table.CONFIGS, "pkd", "configs/quickstart/nothing_{}.yaml")
    runs = plan(args(tmp_path, "--detectors", "retinanet", "--methods", "plain", "pkd"))
    assert {r.method for r in runs} == {"plain"}
    assert "there is no configs/quickstart/nothing_retinanet.yaml" in capsys.readouterr().err


def test_a_table_of_nothing_says_so(tmp_path, capsys):
    assert shapes_table.main(["--table-only", "--results", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and f"no results in {tmp_path}" in printed.err


def test_configs_of_the_table_exist():
    assert shapes_table.CONFIGS.keys() == shapes_report.TITLES.keys()
    for name, pattern in shapes_table.CONFIGS.items():
        if name in OF_LABELS:
            assert Path(pattern.format("paa")).is_file()
            continue
        for detector in ("retinanet", "fcos", "faster_rcnn", "mask_rcnn"):
            has_teacher = name not in shapes_table.HEADS or "rcnn" not in detector
            assert Path(pattern.format(detector)).is_file() == has_teacher
    assert Path(shapes_table.CONFIGS["gdetkd"].format("faster_rcnn_7x7")).is_file()


def test_heads_differ_in_the_head_alone(tmp_path, capsys):
    of_regions = ["roifi", "sgfi", "ckd", "sgfi_ckd", "gdetkd"]
    of_paa = ["kd", "lad", "solad"]
    others = [name for name in shapes_table.HEADS if name not in [*of_regions, *of_paa]]
    for detector, methods in (
        ("atss", others),
        ("faster_rcnn_7x7", of_regions),
        ("paa", of_paa),
    ):
        runs = plan(args(tmp_path, "--detectors", detector, "--methods", *methods, "--seeds", "1"))
        assert [r.method for r in runs] == methods
        assert len({r.teacher.job.output for r in runs}) == 1
        for run in runs:
            heads = shapes_table.HEADS[run.method].split()
            assert run.job.overrides["MODEL.KD.HEADS"] == repr(heads)
    plan(args(tmp_path, "--detectors", "retinanet", "--methods", "pgd"))
    assert "Left out: retinanet pgd. PGD (MODEL.KD.HEADS) needs" in capsys.readouterr().err
    plan(args(tmp_path, "--detectors", "fcos", "--methods", "gdetkd"))
    assert "Left out: fcos gdetkd. RoIClassKD (MODEL.KD.HEADS) reads" in capsys.readouterr().err


def test_co_learning_differs_in_the_switch_and_in_the_peer(tmp_path):
    methods = ["colad", "colad_fisher", "colad_self"]
    usual, fisher, self_ = (
        load_config(run.job.config, [x for kv in run.job.overrides.items() for x in kv])
        for run in plan(args(tmp_path, "--detectors", "paa", "--seeds", "1", "--methods", *methods))
    )
    assert all(cfg.MODEL.KD.EVAL_TEACHER for cfg in (usual, fisher, self_))
    switches = [cfg.MODEL.KD.COLAD.SWITCH for cfg in (usual, fisher, self_)]
    assert switches == ["std_mean", "fisher", "std_mean"]
    peers = [cfg.MODEL.KD.TEACHER.CONFIG_FILE for cfg in (usual, fisher, self_)]
    assert peers[0] == peers[1] and peers[0] and peers[2] == ""
