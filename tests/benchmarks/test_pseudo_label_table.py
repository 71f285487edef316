import json

import pseudo_label_report
import pseudo_label_table
import pytest
from pseudo_label_report import read_results
from pseudo_label_table import PARTS, Plan, result_path, to_do

from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.data.requirements import check_available, check_num_classes
from kd_d2.data.shapes_render import CLASSES
from kd_d2.engine import load_config
from kd_d2.experiments.metrics import SCORES
from kd_d2.projects.pseudo_label import read_view
from kd_d2.projects.pseudo_label.class_lists import PhaseClasses, class_lists
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.phases import plan as phases
from kd_d2.projects.pseudo_label.recipe import image_sources

SHAPES = tuple(CLASSES)
SHORT = ["--parts", "labels", "--percents", "10", "--seeds", "1"]
NUM_TRAIN = 2000


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    monkeypatch.chdir(pseudo_label_table.ROOT)


def args(tmp_path, *argv):
    folders = ["--output", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    return pseudo_label_table.parse_args([*folders, *argv])


def planned(tmp_path, *argv):
    """The runs by their names."""
    return {run.job.name: run for run in Plan(args(tmp_path, *argv)).runs}


def config(run):
    values = [text for pair in run.job.overrides.items() for text in pair]
    return load_config(run.job.config, [*values, "OUTPUT_DIR", str(run.job.output)])


def labelled(name):
    """A data set and the classes that it shows; those of a view are read from its file."""
    if not name.startswith("relabeled:"):
        return name, SHAPES
    view = read_view(name.removeprefix("relabeled:"))
    assert (view.missing, {*view.classes, *view.drop}) == ("background", {*CLASSES})
    [inner] = view.datasets
    return inner, tuple(view.classes)


def only(runs, folder):
    [run] = [run for run in runs if run.job.part == folder]
    return run


def test_the_plan_and_who_needs_whom(tmp_path):
    runs = planned(tmp_path, *SHORT)
    assert {name: [x.job.name for x in run.needs] for name, run in runs.items()} == {
        "teacher": [],
        "labels_phase_a_seed1": ["teacher"],
        "train_only_phase_a_seed1": ["teacher"],
        "labels_b_0p_seed1": ["labels_phase_a_seed1"],
        "labels_b_train_only_0p_seed1": ["train_only_phase_a_seed1"],
        "labels_b_c_10p_seed1": ["labels_phase_a_seed1", "labels_b_0p_seed1"],
        "labels_b_c_mix_10p_seed1": ["labels_phase_a_seed1", "labels_b_0p_seed1"],
        "labels_labels_10p_seed1": ["labels_phase_a_seed1"],
        "labels_joint_10p_seed1": ["labels_phase_a_seed1"],
        "labels_b_c_train_only_10p_seed1": [
            "train_only_phase_a_seed1",
            "labels_b_train_only_0p_seed1",
        ],
        "labels_all_labels_100p_seed1": [],
    }
    everything = ["shapes_train_10p_s0_rest", "shapes_unlabeled", "shapes_train_10p_s0"]
    assert image_sources(config(runs["labels_phase_a_seed1"])) == everything
    assert image_sources(config(runs["train_only_phase_a_seed1"])) == ["shapes_train"]
    kinds = ("labels_labels_10p_seed1", "labels_joint_10p_seed1")
    assert [config(runs[x]).PSEUDO_LABEL.BASELINE for x in kinds] == ["labels", "joint"]


@pytest.mark.parametrize("part", PARTS)
def test_every_run_has_a_config_that_can_be(part, tmp_path):
    runs = planned(tmp_path, "--parts", part, "--seeds", "1", "2").values()
    for run in runs:
        cfg = config(run)
        check_config(cfg)
        check_pseudo_label_config(cfg)
        node = cfg.PSEUDO_LABEL
        sets = (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, node.LABELED, node.UNLABELED)
        check_available({name: run.job.name for names in sets for name in names})
        check_num_classes(cfg, cfg.MODEL.META_ARCHITECTURE)
        assert (run.seed, run.job.iterations) == (cfg.SEED, length(run, cfg))
    assert len({run.job.output for run in runs}) == len(runs)


def length(run, cfg):
    """Of the training that is watched, which must be the only one of the run."""
    if not run.job.part:
        return cfg.SOLVER.MAX_ITER
    whole = PhaseClasses(SHAPES, (SHAPES,), SHAPES)
    [phase] = phases(cfg, whole, NUM_TRAIN * run.percent // 100)
    assert f"{run.job.output}/{run.job.part}" == phase.cfg.OUTPUT_DIR
    return phase.cfg.SOLVER.MAX_ITER


def test_baselines_are_as_long_as_both_phases(tmp_path):
    runs = planned(tmp_path, "--parts", "labels", "domain", "--seeds", "1")
    compared = [run for run in runs.values() if run.row in ("labels", "joint")]
    assert len(compared) == 4 + 3 + 1  # of two kinds, and in the domain part
    for run in compared:
        c = runs[f"{run.part}_b_c_{run.percent}p_seed1"]
        b = only(c.needs, "phase_b")
        assert length(run, config(run)) == length(b, config(b)) + length(c, config(c))
    [whole] = [run for run in runs.values() if run.row == "all_labels"]
    assert whole.job.iterations == runs["labels_joint_20p_seed1"].job.iterations
    other = planned(tmp_path, *SHORT)[whole.job.name]  # they have one result
    assert other.job.fingerprint() == whole.job.fingerprint()


def test_longer_schedules(tmp_path):
    runs = planned(tmp_path, *SHORT, "--iterations", "2400", "--teacher-iterations", "77")
    usual = planned(tmp_path, *SHORT)
    for name in ("labels_b_0p_seed1", "labels_b_c_10p_seed1", "labels_joint_10p_seed1"):
        assert runs[name].job.iterations == 2 * usual[name].job.iterations
    assert config(runs["teacher"]).SOLVER.MAX_ITER == 77
    assert config(usual["teacher"]).SOLVER.MAX_ITER == 1600  # 2000 where the student has 1500


def test_each_seed_has_its_own_fold_and_phase_c_its_own_b(tmp_path):
    runs = Plan(args(tmp_path, "--percents", "10", "--seeds", "1", "3")).runs
    seen = set()
    for run in (x for x in runs if x.job.part):
        node, [labels] = config(run).PSEUDO_LABEL, [x for x in run.needs if not x.job.part]
        assert str(labels.job.output / "labels") == node.LABELS_DIR
        if run.job.part == "phase_b":
            assert (node.PHASES, run.needs) == (["B"], [labels])
            continue
        base = "shapes_shifted_train" if run.part == "domain" else "shapes_train"
        [(name, _)] = map(labelled, node.LABELED)
        assert name == f"{base}_{run.percent}p_s{run.seed - 1}"
        if run.job.part == "phase_c":
            b = only(run.needs, "phase_b")
            assert (node.PHASES, run.needs) == (["C"], [labels, b])
            assert (b.part, b.seed, b.needs) == (run.part, run.seed, [labels])
            assert b.row.endswith("train_only") == run.row.endswith("train_only")
            assert f"{b.job.output}/phase_b/model_final.pth" == node.PHASE_C.WEIGHTS
        seen.add((run.part, run.row, run.seed))
    assert len(seen) == 2 * (5 + 1 + 4 + 2)


def test_a_teacher_of_the_same_few_labels(tmp_path):
    runs = planned(tmp_path, "--parts", "same_subset", "--seeds", "2")
    assert [*runs] == [f"same_subset_{x}_seed2" for x in ("teacher", "phase_a", "b_0p", "b_c_10p")]
    teacher, phase_a, _, c = runs.values()
    assert config(teacher).DATASETS.TRAIN == ("shapes_train_10p_s1",)
    [labels_of] = config(phase_a).PSEUDO_LABEL.TEACHERS
    assert labels_of == (
        f"teacher1={teacher.job.output}/config.yaml,{teacher.job.output}/model_final.pth"
    )
    assert config(c).PSEUDO_LABEL.LABELED == ["shapes_train_10p_s1"]


def test_two_teachers_have_their_own_classes_each(tmp_path):
    runs = planned(tmp_path, "--parts", "two_teachers", "--seeds", "1", "2")
    first, second, phase_a = list(runs.values())[:3]
    for teacher, own in ((first, SHAPES[:3]), (second, SHAPES[3:])):
        cfg = config(teacher)
        assert [*map(labelled, cfg.DATASETS.TRAIN)] == [("shapes_train", own)]
        assert cfg.MODEL.GFL.NUM_CLASSES == 3
        teacher.job.output.mkdir(parents=True)
        (teacher.job.output / "config.yaml").write_text(cfg.dump())  # as its training does
        teacher.weights.touch()
    assert phase_a.needs == [first, second]
    assert class_lists(config(phase_a)).taught == SHAPES
    missing = {}
    for run in (x for x in runs.values() if x.job.part == "phase_c" and x.seed == 2):
        cfg = config(run)
        found = class_lists(cfg)
        assert found.final == SHAPES
        how = cfg.PSEUDO_LABEL.PHASE_C.MISSING if found.missing else ""
        missing[run.row] = (how, found.missing)
    assert missing == {
        "b_c": ("", ()),
        "b_c_pseudo": ("pseudo", SHAPES[3:]),
        "b_c_mask": ("mask", SHAPES[3:]),
        "b_c_background": ("background", SHAPES[3:]),
    }


def test_another_domain(tmp_path):
    runs = Plan(args(tmp_path, "--parts", "domain", "--seeds", "1")).runs
    tested = {run.row or run.job.name: config(run) for run in runs}
    teacher = tested.pop("teacher")
    assert teacher.DATASETS.TEST == ("shapes_val", "shapes_shifted_val")
    assert {cfg.DATASETS.TEST for cfg in tested.values()} == {("shapes_shifted_val",)}
    assert tested["source"].DATASETS.TRAIN == teacher.DATASETS.TRAIN == ("shapes_train",)
    assert tested["oracle"].DATASETS.TRAIN == ("shapes_shifted_train",)
    for row in ("domain_phase_a_seed1", "b"):
        node = tested[row].PSEUDO_LABEL
        assert (node.LABELED, node.MERGE.THRESHOLD_LABELS) == ([], "shapes_train")
        unlabelled = ["shapes_shifted_train", "shapes_shifted_unlabeled"]
        assert image_sources(tested[row]) == unlabelled
    shared = [run for run in runs if run.row == "teacher"]
    assert [(x.part, x.task) for x in shared] == [
        ("labels", "shapes_val/bbox"),
        ("domain", "shapes_shifted_val/bbox"),
    ]
    assert shared[0].job is shared[1].job


def test_rows_of_the_tables_are_those_of_the_plan(tmp_path):
    arguments = args(tmp_path)
    runs = [run for run in Plan(arguments).runs if run.row]
    rows = {(part, row) for part, rows in pseudo_label_report.ROWS.items() for row in rows}
    assert {(run.part, run.row) for run in runs} == rows
    assert len({result_path(arguments, run) for run in runs}) == len(runs)


def finish(arguments, run, ap=7.0):
    """As if it had been run."""
    folder = run.job.output / run.job.part
    folder.mkdir(parents=True, exist_ok=True)
    scores = {f"{task}/AP": ap for task in ("bbox", "shapes_val/bbox")}
    scores["shapes_shifted_val/bbox/AP"] = ap / 2
    (folder / "metrics.json").write_text(json.dumps({"iteration": 2, "total_loss": 1.0} | scores))
    pseudo_label_table.write_result(arguments, run, {"cpu": "Z80"})


def test_what_is_needed_is_run_before(tmp_path):
    arguments = args(tmp_path, "--seeds", "1", "2")
    runs = Plan(arguments).runs
    before = []
    for wave in to_do(runs, arguments):
        assert all(any(x is y for y in before) for run in wave for x in run.needs)
        before += wave
    assert sorted(map(id, before)) == sorted(map(id, runs))


def test_what_is_left_to_do(tmp_path):
    arguments = args(tmp_path, *SHORT)
    runs = planned(tmp_path, *SHORT)

    def waves():
        return [[run.job.name for run in wave] for wave in to_do([*runs.values()], arguments)]

    for run in runs.values():
        finish(arguments, run)
    assert waves() == []
    result_path(arguments, runs["labels_b_c_10p_seed1"]).unlink()
    assert waves() == [
        ["teacher"],
        ["labels_phase_a_seed1"],
        ["labels_b_0p_seed1"],
        ["labels_b_c_10p_seed1"],
    ]
    finish(arguments, runs["labels_b_c_10p_seed1"])
    runs["labels_all_labels_100p_seed1"].job.overrides["SOLVER.BASE_LR"] = "0.5"
    assert waves() == [["labels_all_labels_100p_seed1"]]


def test_results_are_kept_and_read(tmp_path):
    arguments = args(tmp_path, "--parts", "labels", "domain", "--percents", "10", "--seeds", "2")
    for run in Plan(arguments).runs:
        finish(arguments, run)
    found = {(r["part"], r["row"]): r for r in read_results(arguments.results, 1200)}
    assert len(found) == 9 + 6
    result = found["labels", "b_c"]
    assert (result["percent"], result["seed"], result["iterations"]) == (10, 2, 3)
    assert result["scores"] == dict.fromkeys(SCORES) | {"AP": 7.0}
    assert "PSEUDO_LABEL.LABELED '['\"'\"'shapes_train_10p_s1'\"'\"']'" in result["command"]
    # one training, tried on two sets
    assert [found[part, "teacher"]["scores"]["AP"] for part in ("labels", "domain")] == [7.0, 3.5]
    assert read_results(arguments.results, 200) == []


def test_a_training_is_run_once_for_all_that_read_it(tmp_path, monkeypatch):
    arguments = args(tmp_path, "--parts", "labels", "domain", "--percents", "10", "--seeds", "1")
    begun = []

    def run_jobs(jobs, *_, on_end, **__):
        for job in jobs:
            begun.append(job.name)
            job.output.mkdir(parents=True)
            if job.name == "labels_b_0p_seed1":  # finished in an earlier call
                job.status = "kept"
            else:
                on_end(job)

    monkeypatch.setattr(pseudo_label_table, "run_jobs", run_jobs)
    pseudo_label_table.run_all(arguments)
    assert len(begun) == len({*begun}) == 11 + 6
    rows = {(r["part"], r["row"]) for r in read_results(arguments.results, 1200)}
    assert len(rows) == 9 + 6 and {("labels", "b"), ("domain", "teacher")} <= rows
    pseudo_label_table.run_all(arguments)
    assert len(begun) == 11 + 6


def test_a_table_of_nothing_says_so(tmp_path, capsys):
    assert pseudo_label_table.main(["--table-only", "--results", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"no results in {tmp_path} of 1200 iterations" in printed.err


@pytest.mark.parametrize("argv", [["--percents", "7"], ["--seeds", "6"], ["--parts", "b"]])
def test_what_there_is_not(argv, tmp_path, capsys):
    with pytest.raises(SystemExit):
        args(tmp_path, *argv)
    assert f"{argv[0]}: invalid choice" in capsys.readouterr().err


def test_a_config_without_a_teacher(tmp_path):
    with pytest.raises(ConfigError, match="plain_gfl.yaml has no PSEUDO_LABEL.TEACHERS: give"):
        Plan(args(tmp_path, "--config", "configs/quickstart/plain_gfl.yaml"))
