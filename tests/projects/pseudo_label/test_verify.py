"""What is found to be wrong with runs and exports that somebody has touched."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from cases import Case, detections, make_run, usual_case, write_stages

from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.filter import filter_run
from kd_d2.projects.pseudo_label.filters import FilterSettings
from kd_d2.projects.pseudo_label.merge import merge_run
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.provenance import provenance
from kd_d2.projects.pseudo_label.run_folder import RunError, RunFolder, TeacherRecord, sealed
from kd_d2.projects.pseudo_label.shards import FAILED, USED, ShardContents, write_shard
from kd_d2.projects.pseudo_label.teachers import teacher_hash
from kd_d2.projects.pseudo_label.verify import verify

HUMAN = '"contains_human_labels": false'


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path, usual_case())
    export_run(run, ExportSettings(formats=("coco", "results", "yolo", "voc", "cvat")))
    return run


def only(faults):
    assert len(faults) == 1, faults
    return faults[0]


def made_by(run):
    return run.teachers[0].run


def test_nothing_is_wrong(run):
    assert verify(run) == verify(run.folder) == verify(str(run.folder / "export")) == []


def test_nothing_is_wrong_after_the_stages_themselves(tmp_path):
    run = make_run(tmp_path, usual_case())
    merge_run(run, MergeSettings())
    filter_run(run, FilterSettings())
    paths = export_run(run)
    assert verify(run) == []
    pseudo = json.loads(paths[0].read_text())
    # two teachers: their threshold of 0.5 is 0.5 on the common scale, and nobody has voted twice
    assert [(x["image_id"], x["score"], x["votes"]) for x in pseudo["annotations"]] == [
        (100, 0.9, 1), (100, 0.6, 1), (101, 0.75, 1)
    ]  # fmt: skip
    assert [x["id"] for x in pseudo["images"]] == [100, 101, 102]


def test_a_run_that_was_only_generated(run):
    for name in ("merged", "filtered", "ignored", "export"):
        shutil.rmtree(run.folder / name)
    for name in ("merge.json", "filter.json"):
        (run.folder / name).unlink()
    assert verify(run) == []
    assert "merge" not in provenance(run) and provenance(run)["contains_human_labels"] is False


@pytest.mark.parametrize("folder", ["raw/big", "raw/other", "merged", "filtered", "ignored"])
def test_a_changed_shard_of_every_stage(run, folder):
    path = run.folder / folder / f"{run.shards[1].name}.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    fault = only(verify(run))
    assert folder in fault and run.shards[1].name in fault and "changed" in fault


@pytest.mark.parametrize("folder", ["raw/other", "merged", "ignored"])
def test_missing_shards_are_counted(run, folder):
    for shard in run.shards[:2]:
        (run.folder / folder / f"{shard.name}.done").unlink()
    fault = only(verify(run))
    assert fault.startswith("2 of 3 shards") and run.shards[0].name in fault and "missing" in fault


def test_shards_of_another_run(run):
    path = run.merged / f"{run.shards[2].name}.done"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"run": "another"}))
    assert "of another run" in only(verify(run))


@pytest.mark.parametrize(
    "row, words",
    [
        ((3, 1, 1, 9, 9, 0.5, 0), "could not be read"),
        ((0, 1, 1, 9, 9, 0.5, 0), "not theirs"),
    ],
)
def test_boxes_where_none_can_be(run, row, words):
    shard, folder = run.shards[1], run.raw(run.teachers[0])
    assert (shard.first, shard.last) == (2, 4)
    sizes = detections([(0, 60, 80, 0, 0, 0, 0)] * 2).box[:, :2]
    write_shard(folder, shard, ShardContents(detections([row]), sizes, {3: "no"}), made_by(run))
    assert words in only(verify(run))


def test_shards_of_another_number_of_images(run):
    shard, folder = run.shards[1], run.raw(run.teachers[0])
    sizes = detections([(0, 60, 80, 0, 0, 0, 0)] * 3).box[:, :2]
    write_shard(folder, shard, ShardContents(detections([]), sizes, {}), made_by(run))
    assert "another number of images" in only(verify(run))


def test_another_image_list(run):
    path = run.folder / "images.jsonl"
    path.write_text(path.read_text().replace('"id": 101', '"id": 999'))
    assert "images.jsonl is not the list" in only(verify(RunFolder(run.folder)))


@pytest.mark.parametrize("damage", [lambda x: x[:50], lambda x: "[]\n" + x, lambda x: ""])
def test_an_image_list_that_was_cut(run, damage):
    path = run.folder / "images.jsonl"
    path.write_text(damage(path.read_text()))
    fault = only(verify(RunFolder(run.folder)))
    assert "images.jsonl" in fault and "restore it from a copy" in fault
    path.unlink()
    assert "images.jsonl cannot be read" in only(verify(run.folder))


def test_an_image_list_of_other_paths(run):
    path = run.folder / "images.jsonl"
    path.write_text(path.read_text().replace("image_0.png", "image_4.png", 1))
    fault = only(verify(run.folder))
    assert "images.jsonl was changed" in fault and "names and ids are right" in fault


def test_weights_that_are_others_by_now(tmp_path):
    run = make_run(tmp_path, Case(status=[USED, FAILED]))
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    made_by = {"weights": str(weights), "weights_sha256": hashlib.sha256(b"weights").hexdigest()}
    teachers = [run.teachers[0], TeacherRecord("new", ("cat",), teacher_hash(made_by), made_by)]
    run = RunFolder.create(tmp_path / "new", run.root, list(run.images()), teachers, 2)
    shutil.copytree(tmp_path / "run" / "raw" / "big", run.raw(teachers[0]))
    nothing = ShardContents(detections([]), np.array([[60, 80], [0, 0]]), {1: "no"})
    write_shard(run.raw(teachers[1]), run.shards[0], nothing, teachers[1].run)
    assert verify(run.folder) == []
    weights.write_bytes(b"others")
    fault = only(verify(run.folder))
    assert "model.pth" in fault and "teacher new" in fault
    weights.unlink()
    assert verify(run.folder) == []


@pytest.mark.parametrize(
    "name",
    ["pseudo.json", "ignore.json", "results.json", "cvat.zip", "yolo/labels/part0/image_0.txt",
     "voc/Annotations/part0/image_0.xml"],
)  # fmt: skip
def test_changed_and_missing_exports(run, name):
    path = run.folder / "export" / name
    path.write_bytes(path.read_bytes() + b" ")
    fault = only(verify(run))
    assert name.split("/")[0] in fault and "labels by hand" in fault
    assert only(verify(run.folder / "export")) == fault
    if "/" not in name:
        path.unlink()
        assert "is missing" in only(verify(run))


def test_a_label_file_too_many(run):
    (run.folder / "export/yolo/labels/more.txt").write_text("0 0.5 0.5 1 1\n")
    assert "yolo was changed" in only(verify(run))


def test_an_export_of_former_thresholds(run):
    case = usual_case()
    case.t_keep = (0.5, 0.55, 0.5)
    write_stages(run, case)
    assert "earlier filter" in only(verify(run))


def change_side_car(run, change):
    path = run.folder / "export" / "provenance.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_boxes_that_were_merged_anew_since_they_were_filtered(run):
    merge_run(run, MergeSettings(threshold=0.45))
    assert "of an earlier merge" in only(verify(run))
    with pytest.raises(RunError, match="of an earlier merge"):
        export_run(run)


@pytest.mark.parametrize("text", ["[]", '{"hash": "x"}'])
def test_a_stage_that_does_not_say_who_it_is(run, text):
    for stage, words in (("merge", "merge.json does not say"), ("filter", "filter.json does not")):
        path = run.folder / f"{stage}.json"
        before = path.read_text()
        path.write_text(text)
        faults = verify(run)
        assert words in faults[0] and f"run the stage {stage} again" in faults[0]
        # of all shards of the hash "x" none is there
        assert all("of another run" in x for x in faults[1:])
        path.write_text(before)
    assert verify(run) == []


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content, indent=1))


def reseal(path, edit):
    """As somebody would who knows what he does."""
    content = json.loads(path.read_text())
    del content["sha256"]
    edit(content)
    path.write_text(json.dumps(sealed(content)))


def teacher(**what):
    return lambda x: x["teachers"][0].update(what)


def made_by_floor(x):
    x["teachers"][0]["provenance"]["floor"] = 0.3


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("merge.json", lambda x: x["thresholds"]["big"].update(cat=0.9)),
        ("merge.json", lambda x: x["agreement"]["big"].update(other=0.9)),
        ("filter.json", lambda x: x["t_keep"].update(cat=0.9)),
        ("filter.json", lambda x: x["kept"].update(cat=999)),
        ("filter.json", lambda x: x["counters"].update(small=4)),
        ("run.json", made_by_floor),
        ("run.json", lambda x: x["teachers"][0]["provenance"].update(licence="MIT")),
        ("run.json", teacher(classes=["x", "y", "z"])),
        ("run.json", lambda x: x.update(root="/elsewhere")),
    ],
)
def test_records_that_were_changed(tmp_path, file, edit):
    run = make_run(tmp_path, usual_case())
    merge_run(run, MergeSettings())
    filter_run(run, FilterSettings())
    export_run(run)
    assert verify(run.folder) == []
    change(run.folder / file, edit)
    assert f"{file} was changed after it was written" in only(verify(run.folder))


@pytest.mark.parametrize(
    ("file", "edit", "words"),
    [
        ("merge.json", lambda x: x["thresholds"]["big"].update(cat=0.9), "run the stage merge"),
        ("merge.json", lambda x: x["settings"].update(mode="wbf"), "run the stage merge"),
        ("filter.json", lambda x: x["t_keep"].update(cat=0.9), "run the stage filter"),
        ("run.json", made_by_floor, "says of big what is not so"),
        ("run.json", teacher(classes=["x", "y", "z"]), "merge.json says of .* what is not so"),
    ],
)
def test_records_that_were_changed_and_sealed_again(run, file, edit, words):
    reseal(run.folder / file, edit)
    assert re.search(words, only(verify(run.folder)))


def test_records_of_versions_that_did_not_seal(run):
    path = run.folder / "run.json"
    content = json.loads(path.read_text())
    for key in ("sha256", "images_jsonl"):
        del content[key]
    path.write_text(json.dumps(content))
    assert verify(run.folder) == []
    made_by_floor(content)
    path.write_text(json.dumps(content))
    assert "says of big what is not so" in only(verify(run.folder))


@pytest.mark.parametrize(
    "edit",
    [
        teacher(licence="MIT"),
        teacher(weights_sha256="0" * 64),
        lambda x: x["merge"]["thresholds"]["big"].update(cat=0.9),
        lambda x: x["filter"]["kept"].update(cat=999),
        lambda x: x["images"].update(list="another"),
        lambda x: x["filter"].update(hash="another"),
        lambda x: x["export"].update(weight_mode="score"),
    ],
)
def test_a_side_car_that_was_changed(run, edit):
    change_side_car(run, edit)
    fault = only(verify(run))
    assert "provenance.json does not say what dropped.json, ignore.json, pseudo.json say" in fault
    assert only(verify(run.folder / "export")) == fault


def test_a_side_car_that_was_changed_beside_files_that_say_nothing(run):
    export_run(run, ExportSettings(formats=("yolo",)))
    assert verify(run) == []
    change_side_car(run, teacher(licence="MIT"))
    assert "does not say of teachers what the run says" in only(verify(run))
    change_side_car(run, lambda x: x.update(filter="x"))
    assert "of an earlier filter" in only(verify(run))


@pytest.mark.parametrize("what", ["images", "teachers", "filter", "merge"])
@pytest.mark.parametrize("value", ["x", [], 3, None, [1]])
def test_a_side_car_that_is_none(run, what, value):
    change_side_car(run, lambda x: x.update({what: value}))
    assert "provenance.json" in only(verify(run))


def test_times_and_machines_may_be_others(run):
    change_side_car(run, teacher(started="never", host="nowhere"))
    assert verify(run) == []


@pytest.mark.parametrize("text", ["{}", "[]", "null", '"x"'])
@pytest.mark.parametrize("folder", ["raw/big", "merged", "filtered"])
def test_records_of_shards_that_are_none(run, folder, text):
    (run.folder / folder / f"{run.shards[0].name}.done").write_text(text)
    fault = only(verify(run))
    assert fault.startswith("1 of 3 shards") and "missing or not complete" in fault


def test_raw_detections_that_were_made_anew(run):
    shard, folder = run.shards[0], run.raw(run.teachers[1])
    sizes = detections([(0, 60, 80, 0, 0, 0, 0)] * 2).box[:, :2]
    write_shard(folder, shard, ShardContents(detections([]), sizes, {}), made_by(run))
    fault = only(verify(run))
    assert "merge.json is of raw detections that were made anew since" in fault
    merge_run(run, MergeSettings())
    assert "filter.json is of an earlier merge" in only(verify(run))
    filter_run(run, FilterSettings())
    assert "of an earlier filter" in only(verify(run))
    export_run(run)
    assert verify(run) == []


def test_an_export_of_another_run(run, tmp_path):
    """Its own files agree, and so it is right by itself."""
    case = usual_case()
    case.names = [f"other_{i}.png" for i in range(5)]
    other = make_run(tmp_path / "other", case)
    export_run(other)
    shutil.rmtree(run.folder / "export")
    shutil.copytree(other.folder / "export", run.folder / "export")
    assert verify(run.folder / "export") == []
    assert "another list of images" in only(verify(run))


def test_an_export_that_holds_human_labels(run):
    change_side_car(run, lambda x: x.update(contains_human_labels=True))
    assert "no human labels" in only(verify(run.folder / "export"))


@pytest.mark.parametrize("text", ['"contains_human_labels": true', '"x": false', None])
def test_a_file_that_holds_human_labels(run, text):
    path = run.folder / "export" / "ignore.json"
    changed = "[]" if text is None else path.read_text().replace(HUMAN, text)
    assert changed != path.read_text()
    path.write_text(changed)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    change_side_car(run, lambda x: x["files"].update({"ignore.json": sha256}))
    fault = only(verify(run))
    assert "ignore.json" in fault and "no human labels" in fault


def test_an_export_that_was_cut_off(run):
    (run.folder / "export" / ".new").mkdir()
    assert "cut off" in only(verify(run))


def test_an_export_without_a_side_car(run):
    (run.folder / "export" / "provenance.json").write_text("{")
    assert "cannot be read" in only(verify(run))


def test_several_faults_at_once(run):
    (run.folder / "export" / "ignore.json").unlink()
    (run.filtered / f"{run.shards[0].name}.npz").unlink()
    assert len(verify(run)) == 2


def test_neither_a_run_nor_an_export(tmp_path):
    with pytest.raises(RunError, match="neither a run"):
        verify(tmp_path)
