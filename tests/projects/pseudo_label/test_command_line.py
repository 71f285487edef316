"""The command line: all stages in a row, one by one, and what it says of mistakes."""

import json
from collections import Counter
from functools import partial

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from generate_cases import write_image, write_teacher

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.arguments import class_names
from kd_d2.projects.pseudo_label.command_line import STAGES, build_parser, run_stages
from kd_d2.projects.pseudo_label.run_folder import RunError

STAGES_AFTER = ("merge", "filter", "export", "report", "sheet")
CLASSES = ["class 0", "class 1", "class 2"]  # of the teacher


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
        (["--labels", "nowhere"], "--labels names the data set 'nowhere', which is not registered"),
        (["--truth", "nowhere"], "--truth names the data set 'nowhere', which is not registered"),
        (["--classes", "nowhere"], "--classes nowhere is no data set, and no text file"),
        (["--category-ids", "nowhere.json"], "--category-ids nowhere.json cannot be read"),
        (["--max-aspect", "0.5"], r"\(--max-aspect\) is 0.5"),
        (["--w-min", "2"], "w_min is 2.0"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_mistakes_are_told_before_anything_is_labelled(argv, words, asked, tmp_path):
    with pytest.raises(ValueError, match=words):
        call("all", *asked, *argv)
    assert not (tmp_path / "run").exists()


def test_mistakes_that_the_teachers_classes_show(asked, tmp_path):
    classes, ids, thing = tmp_path / "classes.txt", tmp_path / "ids.json", CLASSES[0]
    classes.write_text(f"{thing}\nunicorn\n")
    ids.write_text(json.dumps({thing: 1}))
    for argv, words in (
        (["--classes", classes], "name 'unicorn', which no teacher has"),
        (["--category-ids", ids], f"No category id is given for {CLASSES[1]}"),
    ):
        with pytest.raises(ValueError, match=words):
            call("all", *asked, *argv)
        assert not list((tmp_path / "run").rglob("*.npz"))


@pytest.fixture
def registered(tmp_path):
    """Labelled data sets of the run's images, and how often each was read."""
    reads = Counter()

    def read(name):
        reads[name] += 1
        box = {"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYXY_ABS}
        return [
            {"file_name": str(tmp_path / f"images/{i}.png"), "image_id": i,
             "annotations": [box | {"category_id": c} for c in range(3)]} for i in range(5)
        ]  # fmt: skip

    for name in ("people_a", "people_b"):
        DatasetCatalog.register(name, partial(read, name))
        MetadataCatalog.get(name).thing_classes = CLASSES[::-1]
    yield reads
    for name in ("people_a", "people_b"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_no_data_set_is_read_twice(asked, tmp_path, registered):
    count = ["--thresholds", "per_class_count", "--labels", "people_a"]
    for truth, expected in (
        ("people_a", {"people_a": 1}),
        ("people_b", {"people_a": 1, "people_b": 1}),
    ):
        registered.clear()
        assert call("all", *asked, *count, "--truth", truth, "--classes", "people_a") == 0
        assert registered == expected
        report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
        assert report["labelled"] == "people_a" and report["quality"]["objects"] == 15
    registered.clear()
    assert (
        call("report", "--run", tmp_path / "run", "--labels", "people_a", "--truth", "people_a")
        == 0
    )
    assert registered == {"people_a": 1}


def test_order_of_the_classes(asked, tmp_path, registered):
    def found():
        return [(x["id"], x["name"]) for x in json.loads(exported(tmp_path))["categories"]]

    usual, turned = (list(enumerate(x, 1)) for x in (CLASSES, CLASSES[::-1]))
    run, file = tmp_path / "run", tmp_path / "classes.txt"
    assert call("all", *asked, "--threshold", 0.4, "--classes", "people_a") == 0
    assert found() == turned and not registered
    for argv, expected in (([], usual), (["--classes", file], turned)):
        file.write_text("\n".join(["", *(f" {x} " for x in CLASSES[::-1]), "", ""]))
        assert call("merge", "--run", run, "--threshold", 0.4, *argv) == 0
        assert call("filter", "--run", run) == call("export", "--run", run) == 0
        assert found() == expected
    for text, words in (
        ("\n \n", "classes.txt names no class"),
        ("a\na\n", "'a' more than once"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            call("merge", "--run", run, "--classes", file)


def test_the_classes_of_a_file_in_cocos_format(tmp_path):
    """They are known when it is read."""
    images = [{"id": 1, "file_name": "1.png", "height": 9, "width": 9}]
    categories = [{"id": 4, "name": "b"}, {"id": 2, "name": "a"}]
    content = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "x.json").write_text(json.dumps(content))
    register_coco_instances("coco_of_ours", {}, str(tmp_path / "x.json"), str(tmp_path))
    try:
        assert class_names("coco_of_ours") == ("a", "b")  # in the order of their ids
    finally:
        DatasetCatalog.remove("coco_of_ours")
        MetadataCatalog.remove("coco_of_ours")
    assert class_names(None) == () and class_names("coco_2017_val")[:2] == ("person", "bicycle")


def test_all_once_more_touches_nothing(asked, tmp_path):
    assert call("all", *asked, "--threshold", 0.4) == 0
    folders = ("merged", "filtered", "export", "report", "sheet")
    paths = [x for folder in folders for x in (tmp_path / "run" / folder).iterdir()]
    before = [x.stat().st_mtime_ns for x in paths]
    assert call("all", *asked, "--threshold", 0.4) == 0
    assert len(paths) > 15 and [x.stat().st_mtime_ns for x in paths] == before


def test_stages_before_their_time(tmp_path):
    for stage in STAGES:
        if stage != "generate":
            with pytest.raises(RunError):
                call(stage, "--run", tmp_path / "nothing")
