"""The command line: all stages in a row, one by one, and what it says of mistakes."""

import json
from collections import Counter
from functools import partial
from unittest.mock import Mock

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from generate_cases import write_image, write_teacher

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import command_line
from kd_d2.projects.pseudo_label.arguments import class_names
from kd_d2.projects.pseudo_label.command_line import STAGES, build_parser, run_stages
from kd_d2.projects.pseudo_label.label_files import LabelFileError
from kd_d2.projects.pseudo_label.run_folder import RunError, RunFolder
from kd_d2.projects.pseudo_label.sources import SourceError

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


def test_what_is_asked_for_reaches_the_stages(asked, tmp_path, registered):
    count = ["--thresholds", "per_class_count", "--labels", "people_a"]
    assert call("all", *asked, *count, "--nms", 0.3, "--beta", 2, "--limits", 0.2, 0.25) == 0
    run = tmp_path / "run"
    assert RunFolder(run).teachers[0].provenance["nms"] == 0.3
    merge = json.loads((run / "merge.json").read_text())
    assert (merge["settings"]["beta"], merge["settings"]["limits"]) == (2, [0.2, 0.25])
    assert all(0.2 <= x <= 0.25 for x in merge["thresholds"]["big"].values())
    with pytest.raises(RunError, match="nms was 0.3, and now is 0.5"):
        call("generate", *asked)


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
    for text in ("[1]", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(ConfigError, match="give a JSON file of class -> id"):
            call("export", "--run", run, "--category-ids", file)
    for i in (1.7, 2.0, True, "3", None):
        for given in ({names[0]: i}, {"categories": [{"name": names[0], "id": i}]}):
            file.write_text(json.dumps(given))
            with pytest.raises(
                ConfigError, match=f"'{names[0]}' has the id {i!r}; an id is a whole"
            ):
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
        (
            ["--min-agreement", "0.7"],
            r"MIN_AGREEMENT .* \(PSEUDO_LABEL.GENERATE.FLIP",
        ),
        (["--nms", "2"], "nms is 2.0; it must be a number from 0 to 1"),
        (["--beta", "0"], "BETA .* is 0.0; it must be above 0"),
        (["--limits", "0.9", "0.3"], "LIMITS .* is .*the lower one first"),
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


def test_nothing_is_deleted_for_a_command_that_cannot_be(asked, tmp_path):
    assert call("all", *asked, "--threshold", 0.4) == 0
    paths = [x for x in (tmp_path / "run").rglob("*") if x.is_file()]
    before = {x: x.read_bytes() for x in paths}
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({CLASSES[0]: 1}))
    for argv, words in (
        (["--class-map", "big=nowhere.yaml"], "nowhere.yaml"),
        (["--category-ids", ids], f"No category id is given for {CLASSES[1]}"),
    ):
        with pytest.raises(ValueError, match=words):
            call("all", *asked, "--new-run", "--floor", 0.1, *argv)
        assert before == {x: x.read_bytes() for x in (tmp_path / "run").rglob("*") if x.is_file()}
    assert call("all", *asked, "--new-run", "--floor", 0.1) == 0
    assert all(not x.exists() or x.read_bytes() != before[x] for x in paths if x.suffix == ".done")


def test_images_that_are_mended_reach_the_labels(asked, tmp_path, capsys):
    asked += ["--threshold", 0.3]
    path = tmp_path / "images" / "1.png"
    content = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(RunError, match="1 of 5 images .* on this folder with --retry-failed"):
        call("all", *asked)
    lenient = [*asked, "--max-failed-share", 0.5]
    assert call("all", *lenient) == 0
    names = [x["file_name"] for x in json.loads(exported(tmp_path))["images"]]
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "1.png" not in names and "run generate again with --retry-failed" in report
    path.write_bytes(content)
    assert call("all", *lenient) == 0  # nobody has asked for it
    assert "1.png" not in [x["file_name"] for x in json.loads(exported(tmp_path))["images"]]
    merged = {x: x.stat().st_mtime_ns for x in (tmp_path / "run" / "merged").glob("*.npz")}
    assert call("all", *asked, "--retry-failed") == 0
    images = [x["file_name"] for x in json.loads(exported(tmp_path))["images"]]
    assert images == sorted([*names, "1.png"])
    assert sorted(x.stat().st_mtime_ns == merged[x] for x in merged) == [False, True, True]
    assert call("verify", "--run", tmp_path / "run") == 0
    # as if it had never been broken
    fresh = [tmp_path / "fresh" if x == tmp_path / "run" else x for x in asked]
    assert call("all", *fresh) == 0
    assert (tmp_path / "fresh" / "export" / "pseudo.json").read_bytes() == exported(tmp_path)


@pytest.fixture
def passes(asked, monkeypatch):
    """Whether all checks let arguments through; nothing is labelled then."""

    class Labels(Exception):
        """Here the labelling would begin."""

    def passes(*argv):
        with monkeypatch.context() as patch:
            patch.setattr(command_line, "_generated", Mock(side_effect=Labels))
            with pytest.raises(Labels):
                call("all", *asked, *argv)
        return True

    return passes


def test_thresholds_that_cannot_serve(asked, tmp_path, passes):
    teacher = asked[3].partition("=")[2]
    two, file = ["--teacher", f"small={teacher}"], tmp_path / "t.json"
    file.write_text(json.dumps(dict.fromkeys(CLASSES, 0.5) | {CLASSES[1]: 0.4}))
    by_file = ["--thresholds", "file", "--threshold-file"]
    for argv, words in (
        ([*by_file, tmp_path / "absent.json"], "The thresholds .*absent.json cannot be read: No s"),
        (
            [*by_file, file, "--ignore-from", 0.45],
            "T_IGNORE .* is 0.45, above .* 0.4 of",
        ),
        (
            ["--threshold", 0.3, "--ignore-from", 0.4],
            "T_IGNORE .* is 0.4, above .* 0.3 of",
        ),
        # the common threshold of several teachers is 0.5
        ([*two, "--threshold", 0.7, "--ignore-from", 0.6], "above the threshold 0.5 of"),
    ):
        with pytest.raises(ConfigError, match=words):
            call("all", *asked, *argv)
        assert not (tmp_path / "run").exists()
    assert passes(*by_file, file, "--ignore-from", 0.35)


def people(name, file_names, categories, classes=CLASSES):
    """Registers images with a box of each of these classes."""
    box = {"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYXY_ABS}
    records = [
        {"file_name": str(x), "image_id": i, "annotations": [box | {"category_id": c}
         for c in categories]} for i, x in enumerate(file_names)
    ]  # fmt: skip
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = list(classes)
    return name


def test_labels_that_cannot_serve(asked, tmp_path, passes):
    own = [tmp_path / "images" / f"{i}.png" for i in range(5)]
    names = [
        people("people_elsewhere", ["/data/a.png"], [0] * 10),
        people("people_without_boxes", own, []),
        people("people_of_fish", own, [0, 0], ["fish"]),
        people("people_of_few", own, [0]),
        people("people_of_ours", own, [0, 0]),
    ]
    fbeta, count = (["--thresholds", f"per_class_{x}", "--labels"] for x in ("fbeta", "count"))
    elsewhere, without, fish, few, good = names
    try:
        for argv, words in (
            ([*fbeta, elsewhere], "None of the images of people_elsewhere is in the run"),
            (
                [*fbeta, without],
                "No class has 10 boxes of people_without_boxes in the run's images",
            ),
            ([*fbeta, few], "No class has 10 boxes of people_of_few in the run's images"),
            (
                [*count, without],
                "people_without_boxes has no box of the run's classes",
            ),
            ([*count, fish], "None of the classes of people_of_fish is one of the run's"),
            # what is found is 0.3 at least
            (
                [*count, good, "--ignore-from", 0.4],
                "T_IGNORE .* is 0.4, above .* 0.3 that",
            ),
            # of the report
            (["--labels", fish], "people_of_fish has no box of any of the run's classes: map"),
            (["--labels", without], "people_without_boxes has no box of any of the run's classes"),
            (["--truth", fish], "None of the classes of people_of_fish is one of the run's"),
            (["--truth", elsewhere], "None of the images of people_elsewhere is in the run"),
        ):
            with pytest.raises(ConfigError, match=words):
                call("all", *asked, *argv)
            assert not list((tmp_path / "run").rglob("*.npz")), argv
        for argv in ([*fbeta, good], [*count, elsewhere], ["--truth", without]):
            assert passes(*argv)
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_images_that_share_a_label_file(asked, tmp_path, passes):
    write_image(tmp_path / "images" / "3.jpg")
    for formats in (["yolo"], ["coco", "voc"]):
        with pytest.raises(LabelFileError, match="3.png and another image differ only in their su"):
            call("all", *asked, "--formats", *formats)
        assert not list((tmp_path / "run").rglob("*.npz"))
    assert passes("--formats", "coco", "cvat")


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


def test_output_below_the_images(asked, tmp_path):
    """The pictures of the check sheet are no images of the second time, nor of another run."""
    asked, run = asked[:-2], tmp_path / "images" / "run"
    for _ in range(2):
        assert call("all", *asked, "--output", run, "--threshold", 0.4) == 0
        assert any(x.suffix in (".png", ".jpg") for x in (run / "sheet").iterdir())
    assert call("all", *asked, "--output", tmp_path / "images" / "two", "--threshold", 0.4) == 0
    lists = [(x / "images.jsonl").read_text() for x in (run, run.with_name("two"))]
    assert lists[0] == lists[1] and lists[0].count("\n") == 5
    with pytest.raises(SourceError, match="is a folder of output"):
        call("all", *asked, "--output", tmp_path / "images")


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
