"""The command line: all stages in a row, one by one, and what it says of mistakes."""

import json

import pytest
from generate_cases import write_image, write_teacher

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.command_line import STAGES, build_parser, run_stages
from kd_d2.projects.pseudo_label.run_folder import RunError

STAGES_AFTER = ("merge", "filter", "export", "report", "sheet")


def call(*argv):
    return run_stages(build_parser("x").parse_args([str(x) for x in argv]))


@pytest.fixture
def asked(tmp_path):
    """Arguments of generate; the run is in the folder ``run``."""
    for i in range(5):
        write_image(tmp_path / "images" / f"{i}.png", 64, 96, i)
    (tmp_path / "teacher").mkdir()
    config, weights = write_teacher(tmp_path / "teacher", "RetinaNet")
    asked = ["--images", tmp_path / "images", "--teacher", f"big={config},{weights}"]
    asked += ["--device", "cpu", "--num-workers", 0, "--shard-size", 2, "--top-k", 10]
    return [*asked, "--output", tmp_path / "run"]


def exported(tmp_path):
    return (tmp_path / "run" / "export" / "pseudo.json").read_bytes()


def test_all_is_every_stage_in_a_row(asked, tmp_path, capsys):
    run = tmp_path / "run"
    assert call("all", *asked, "--threshold", 0.4, "--weights", "linear") == 0
    for path in ("export/pseudo.json", "report/report.html", "sheet/sheet.html"):
        assert (run / path).stat().st_size > 100
    together = exported(tmp_path)
    content = json.loads(together)
    assert len(content["images"]) and content["info"]["pseudo"]["export"]["weight_mode"] == "linear"
    assert call("verify", "--run", run) == 0
    assert "All is as it was written." in capsys.readouterr().out
    # one by one it is the same, and done already
    for path in (run / "export").iterdir():
        path.unlink()
    assert call("generate", *asked) == 0
    for stage, more in zip(
        STAGES_AFTER, (["--threshold", 0.4], [], ["--weights", "linear"], [], [])
    ):
        assert call(stage, "--run", run, *more) == 0
    assert exported(tmp_path) == together
    (run / "export" / "pseudo.json").write_text("{}")
    assert call("verify", "--run", run) == 1
    assert "pseudo.json was changed after it was exported" in capsys.readouterr().out


def test_another_threshold_needs_another_filter(asked, tmp_path):
    run = tmp_path / "run"
    assert call("all", *asked, "--threshold", 0.4) == 0
    assert call("merge", "--run", run, "--threshold", 0.45) == 0
    with pytest.raises(RunError, match="is of an earlier merge.* run the stage filter again"):
        call("export", "--run", run)
    assert call("filter", "--run", run) == 0
    assert call("export", "--run", run) == 0


def test_ids_of_categories(asked, tmp_path):
    assert call("all", *asked, "--threshold", 0.4) == 0
    run, content = tmp_path / "run", json.loads(exported(tmp_path))
    names = [x["name"] for x in content["categories"]]
    file = tmp_path / "ids.json"
    for given in (
        {name: 10 * i + 7 for i, name in enumerate(names)},
        {"categories": [{"name": name, "id": 10 * i + 7} for i, name in enumerate(names)]},
    ):
        file.write_text(json.dumps(given))
        assert call("export", "--run", run, "--category-ids", file) == 0
        found = [x["id"] for x in json.loads(exported(tmp_path))["categories"]]
        assert found == [7, 17, 27]
    file.write_text("[1]")
    with pytest.raises(ConfigError, match="give a JSON file of class -> id"):
        call("export", "--run", run, "--category-ids", file)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--class-map", "big"], "--class-map is 'big': it must be NAME=FILE"),
        (["--thresholds", "per_class_count"], "per_class_count needs a labelled data set"),
        (["--labels", "nowhere"], "--labels nowhere: there is no data set of that name"),
        (["--max-aspect", "0.5"], "max_aspect is 0.5"),
        (["--w-min", "2"], "w_min is 2.0"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_mistakes_are_told_before_anything_is_labelled(argv, words, asked, tmp_path):
    with pytest.raises(ValueError, match=words):
        call("all", *asked, *argv)
    assert not (tmp_path / "run").exists()


def test_stages_before_their_time(tmp_path):
    for stage in STAGES:
        if stage != "generate":
            with pytest.raises(RunError):
                call(stage, "--run", tmp_path / "nothing")
