"""A run goes on with the same images, teachers and settings, and with no others."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generate_cases import QUICK, Case, raw_bytes, write_image, write_teacher

from kd_d2.checkpoint import CheckpointError
from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import teachers
from kd_d2.projects.pseudo_label.generate import (
    GenerateSettings,
    generate,
    prepare_run,
)
from kd_d2.projects.pseudo_label.run_folder import RunError, RunFolder
from kd_d2.projects.pseudo_label.shards import ShardError
from kd_d2.projects.pseudo_label.sources import from_folder
from kd_d2.projects.pseudo_label.teachers import TeacherSource, build_detector, teacher_config


@pytest.fixture
def case(tmp_path):
    return Case.make(tmp_path, images=4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"floor": 0.1}, "RetinaNet's floor was 0.05, and now is 0.1"),
        ({"topk": 21}, "topk was 20, and now is 21"),
        ({"nms": 0.6}, "nms was 0.5, and now is 0.6"),
        ({"size": (48, 128)}, r"size was \[64, 128\], and now is \[48, 128\]"),
        ({"flip": True}, "flip was False, and now is True"),
        ({"amp": True}, "amp was False, and now is True"),
        ({"batch": 2}, "batch was 1, and now is 2"),
        ({"shard_size": 4}, "shard_size was 3, and now is 4"),
        ({"max_pixels": 9999}, "max_pixels was 50000000, and now is 9999"),
    ],
)
def test_other_settings_are_refused(case, changed, words):
    run = case.begin()
    content = (run.folder / "run.json").read_bytes()
    with pytest.raises(RunError, match=words) as error:
        case.prepare(**changed)
    for way_out in ("PSEUDO_LABEL.LABELS_DIR, --output", "tools/pseudo_label.py .* --new-run"):
        assert re.search(way_out, str(error.value))
    assert str(error.value).count("and now is") == 1  # nothing else is different
    assert (run.folder / "run.json").read_bytes() == content


def test_what_does_not_matter_may_change(case):
    run, _ = case.generate(num_workers=0)
    other, _ = case.prepare(num_workers=1, heartbeat=9, nms=0.5, size=(64, 128), device="")
    assert [t.run for t in other.teachers] == [t.run for t in run.teachers]


def test_other_teachers_are_refused(case):
    case.begin()
    _, config, weights = case.teachers[0]
    state = torch.load(weights, weights_only=True)
    state["model"]["head.cls_score.bias"] += 1
    torch.save(state, case.folder / "other.pth")
    for teachers_now, words in (
        ([("other", config, weights)], "its teachers were RetinaNet, and now are other"),
        ([("RetinaNet", config, str(case.folder / "other.pth"))], "weights_sha256 was .{64}, and"),
        (
            [("RetinaNet", config, weights, ("MODEL.RETINANET.NUM_CONVS", "2"))],
            "config MODEL.RETINANET.NUM_CONVS was 1, and now is 2",
        ),
        (
            [("RetinaNet", config, weights, ("MODEL.PIXEL_STD", "[2.,2.,2.]"))],
            r"config MODEL.PIXEL_STD was as by default, and now is \[2.0, 2.0, 2.0\]",
        ),
    ):
        with pytest.raises(RunError, match=words):
            replace(case, teachers=teachers_now).prepare()


def test_the_same_teacher_elsewhere_goes_on(case):
    case.prepare()
    _, config, weights = case.teachers[0]
    moved = [
        shutil.copy(path, str(case.folder / f"moved{path[-5:]}")) for path in (config, weights)
    ]
    run, settings = replace(case, teachers=[("RetinaNet", *moved)]).prepare()
    (case.folder / "teachers" / "RetinaNet.pth").unlink()
    assert generate(run, settings).done_here == 4


def test_other_images_are_refused(case):
    case.begin()
    root, images = from_folder(case.folder / "images")
    settings = GenerateSettings(**QUICK)

    def prepare(images, root=root):
        prepare_run(case.folder / "run", images, root, case.teachers, settings)

    prepare(images)
    with pytest.raises(RunError, match="it has 4 images, and now there are 3"):
        prepare(images[1:])
    with pytest.raises(RunError, match=r"had 001.png \(id 2\) where now is 001.png \(id 9\)"):
        prepare([images[0], replace(images[1], id=9), *images[2:]])
    with pytest.raises(RunError, match="images lay in .*images, and now in /elsewhere"):
        prepare(images, "/elsewhere")
    with pytest.raises(RunError, match="more than one id 9"):
        prepare([replace(x, id=9) for x in images])
    with pytest.raises(RunError, match="no image: name one"):
        prepare([])


def test_a_new_run_deletes_the_old_one_but_not_what_was_exported(case):
    run, _ = case.generate(shard_size=2)
    for name in ("merged/x.npz", "filtered/x.npz", "ignored/x.npz", "export/labels.json"):
        (run.folder / name).parent.mkdir()
        (run.folder / name).touch()
    for name in ("merge.json", "filter.json"):
        (run.folder / name).touch()
    fresh, settings = case.prepare(new_run=True, shard_size=3, floor=0.1)
    assert sorted(p.name for p in run.folder.iterdir()) == ["export", "images.jsonl", "run.json"]
    assert (run.folder / "export" / "labels.json").exists()
    assert generate(fresh, settings).done_here == 4
    assert len(raw_bytes(fresh)) == 4
    assert case.prepare("unborn", new_run=True)[0].num_images == 4


def test_no_new_run_while_somebody_works(case):
    run, _ = case.prepare()
    folder = run.raw(run.teachers[0])
    folder.mkdir(parents=True)
    claim = folder / f"{run.shards[0].name}.claim"
    claim.write_text(json.dumps({"host": "elsewhere", "pid": 17, "start": "1"}))
    content = (run.folder / "run.json").read_bytes()
    for asked, words in (
        ({"new_run": True}, "process 17 on elsewhere still works in .* leave out --new-run"),
        ({}, "has another run: RetinaNet's floor was 0.05"),
    ):
        with pytest.raises(RunError, match=words):
            case.prepare(floor=0.1, **asked)
    with pytest.raises(RunError, match="process 17 on elsewhere .* leave out --retry-failed"):
        case.prepare(retry_failed=True)
    assert (run.folder / "run.json").read_bytes() == content
    case.prepare(new_run=True)  # is the same run, and joins it


def test_a_new_run_of_equal_settings_goes_on(case):
    run, _ = case.generate()
    before = raw_bytes(run)
    again, settings = case.prepare(new_run=True)
    assert len(before) == 4 and raw_bytes(again) == before
    assert generate(again, settings).done_here == 0


def truncated(weights, folder):
    content = Path(weights).read_bytes()
    (folder / "truncated.pth").write_bytes(content[: len(content) // 2])
    return str(folder / "truncated.pth")


def of_another_detector(weights, folder):
    (folder / "others").mkdir()
    return write_teacher(folder / "others", "FCOS")[1]


@pytest.mark.parametrize("damage", [truncated, of_another_detector])
def test_a_new_run_deletes_nothing_if_its_weights_cannot_be_used(case, damage):
    run, _ = case.generate()
    name, config, weights = case.teachers[0]
    content = {x: x.read_bytes() for x in run.folder.rglob("*") if x.is_file()}
    bad = replace(case, teachers=[(name, config, damage(weights, case.folder))])
    with pytest.raises(CheckpointError, match="Teacher RetinaNet: "):
        bad.prepare(new_run=True)
    assert content == {x: x.read_bytes() for x in run.folder.rglob("*") if x.is_file()}


def test_a_run_without_a_shard_gives_way(case):
    name, config, weights = case.teachers[0]
    bad = replace(case, teachers=[(name, config, truncated(weights, case.folder))])
    with pytest.raises(CheckpointError):
        bad.generate()
    assert (case.folder / "run" / "run.json").exists()
    run, report = case.generate()
    assert report.done_here == 4
    assert RunFolder(run.folder).teachers[0].provenance["weights"] == weights
    # what was merged depends on shards, too, and outlives the raw ones
    shutil.rmtree(run.folder / "raw")
    run.merged.mkdir()
    (run.merged / f"{run.shards[0].name}.done").touch()
    with pytest.raises(RunError, match="has another run: RetinaNet's floor was 0.05"):
        case.prepare(floor=0.1)
    shutil.rmtree(run.merged)
    assert case.prepare(floor=0.1)[0].teachers[0].provenance["floor"] == 0.1


def test_failed_images_are_tried_again_only_if_somebody_asks(tmp_path):
    case = Case.make(tmp_path, images=7, archs=("RetinaNet", "FCOS"))
    (tmp_path / "images" / "001.png").write_bytes(b"")
    (tmp_path / "images" / "005.png").write_bytes(b"")
    settings = {"max_failed_share": 0.5}
    run, _ = case.generate(**settings)
    times = {x: x.stat().st_mtime_ns for x in run.folder.glob("raw/*/*.npz")}
    assert case.generate(**settings)[1].done_here == 0
    before = raw_bytes(run)
    # still the same: all of them are made again, to the same bytes
    case.prepare(retry_failed=True, **settings)
    lost = {x.stem for x in times if not x.with_suffix(".done").exists()}
    assert lost == {shard.name for shard in run.shards[:2]} and len(times) == 6
    assert case.generate(**settings)[1].done_here == 2 * 6 and raw_bytes(run) == before
    # only those that failed: one of them is mended
    write_image(tmp_path / "images" / "005.png")
    case.generate(retry_failed=True, **settings)
    after = raw_bytes(run)
    changed = {x.partition("/")[2].partition(".")[0] for x in after if after[x] != before[x]}
    assert changed == {run.shards[1].name}
    (line,) = (run.folder / "errors.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "001.png"
    same = {x for x in times if x.stat().st_mtime_ns == times[x]}
    assert {x.stem for x in same} == {run.shards[2].name}


def test_settings_that_the_run_was_not_prepared_with(case):
    run, settings = case.prepare()
    with pytest.raises(RunError, match="not those that .* was prepared with"):
        generate(run, replace(settings, floor=0.1))
    assert not raw_bytes(run)


def test_shards_of_another_run_are_not_taken(case):
    run, settings = case.generate()
    shutil.copytree(run.folder / "raw", case.folder / "raw")
    other, settings = case.prepare("other", floor=0.1)
    shutil.copytree(case.folder / "raw", other.folder / "raw")
    with pytest.raises(ShardError, match="of another run"):
        generate(other, settings)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"floor": 1.5}, "floor is 1.5; it must be a number from 0 to 1"),
        ({"topk": 0}, "topk is 0; it must be a whole number of at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"size": (8,)}, "size is .* two whole numbers"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"heartbeat": 30, "stale": 60}, "stale after 60 s and touched every 30 s"),
    ],
)
def test_settings_that_cannot_be(value, words):
    with pytest.raises(ConfigError, match=words):
        GenerateSettings(**value)


def test_teachers_that_cannot_be(case, tmp_path):
    name, config, weights = case.teachers[0]
    for teacher, kind, words in (
        (("../x", config, weights), ConfigError, "called '../x'"),
        ((name, config), ConfigError, "needs weights: give RetinaNet=CONFIG,WEIGHTS"),
        ((name, config, "absent.pth"), FileNotFoundError, "no weights at 'absent.pth'"),
        ((name, "absent.yaml", weights), FileNotFoundError, "no config 'absent.yaml'"),
        (
            (name, config, weights, ("MODEL.META_ARCHITECTURE", "SemanticSegmentor")),
            ConfigError,
            "no detector that finds upright boxes by itself",
        ),
        ((name, config, weights, ("MODEL.LOAD_PROPOSALS", "True")), ConfigError, "by itself"),
        (
            (name, config, weights, ("MODEL.RETINANET.NUM_CLASSES", "0")),
            ConfigError,
            "Teacher RetinaNet .*NUM_CLASSES is 0",
        ),
    ):
        with pytest.raises(kind, match=words):
            replace(case, teachers=[teacher]).prepare()
    with pytest.raises(RunError, match="more than one teacher RetinaNet"):
        replace(case, teachers=case.teachers * 2).prepare()
    assert not (case.folder / "run").exists()


def test_weights_that_do_not_fit_are_told_before_the_first_image(tmp_path):
    case = Case.make(tmp_path, images=2, archs=("RetinaNet", "FCOS"))
    (first, config, _), (_, _, weights) = case.teachers
    case.teachers[1] = ("second", config, weights)
    with pytest.raises(ValueError, match="Teacher second: "):
        case.generate()
    assert not list((tmp_path / "run" / "raw").glob("*/*.npz"))


def test_the_record_of_a_teacher(case):
    run, _ = case.generate(amp=False, floor=0.1)
    record = RunFolder(run.folder).teachers[0].provenance
    assert record["floor"] == 0.1 and record["nms"] == 0.5 and record["size"] == [64, 128]
    assert record["config"]["MODEL.META_ARCHITECTURE"] == "RetinaNet"
    assert record["image_list"] == run.image_list
    assert {"torch", "detectron2", "kd_d2"} <= record["versions"].keys()
    assert {"command", "started", "hardware", "host"} <= record.keys()
    assert len(record["weights_sha256"]) == 64


def test_class_names_are_those_of_the_teachers_data(case):
    name, config, weights = case.teachers[0]
    opts = ("DATASETS.TRAIN", "('coco_2017_train',)", "MODEL.RETINANET.NUM_CLASSES", "80")
    cfg = teacher_config(TeacherSource(name, config, weights, opts), GenerateSettings())
    names = teachers.class_names(cfg)
    assert len(names) == 80 and names[0] == "person"


def test_settings_reach_the_teacher(case):
    settings = GenerateSettings(floor=0.3, topk=7, nms=0.4, size=(48, 100))
    cfg = teacher_config(TeacherSource(*case.teachers[0]), settings)
    model = build_detector(cfg)
    assert (model.test_score_thresh, model.test_nms_thresh) == (0.3, 0.4)
    assert model.max_detections_per_image == 7
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (48, 100)
    opts = ("MODEL.RETINANET.NMS_THRESH_TEST", "0.45")
    for nms in (None, 0):  # the teacher's own
        own = teacher_config(TeacherSource(*case.teachers[0], opts), GenerateSettings(nms=nms))
        assert own.MODEL.RETINANET.NMS_THRESH_TEST == 0.45
    own = teacher_config(TeacherSource(*case.teachers[0]), GenerateSettings())
    assert own.MODEL.RETINANET.NMS_THRESH_TEST == 0.5 and own.INPUT.MIN_SIZE_TEST == 64
