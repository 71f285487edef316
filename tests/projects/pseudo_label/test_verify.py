"""What is found to be wrong with runs and exports that somebody has touched."""

import hashlib
import json
import shutil

import pytest
from cases import Case, detections, make_run, usual_case, write_stages

from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.filter import filter_run
from kd_d2.projects.pseudo_label.filters import FilterSettings
from kd_d2.projects.pseudo_label.merge import merge_run
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.provenance import provenance
from kd_d2.projects.pseudo_label.run_folder import RunError, RunFolder
from kd_d2.projects.pseudo_label.shards import FAILED, USED, ShardContents, read_shard, write_shard
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
    write_shard(folder, shard, ShardContents(detections([row]), sizes, {3: "no"}), "run of big")
    assert words in only(verify(run))


def test_shards_of_another_number_of_images(run):
    shard, folder = run.shards[1], run.raw(run.teachers[0])
    sizes = detections([(0, 60, 80, 0, 0, 0, 0)] * 3).box[:, :2]
    write_shard(folder, shard, ShardContents(detections([]), sizes, {}), "run of big")
    assert "another number of images" in only(verify(run))


def test_another_image_list(run):
    path = run.folder / "images.jsonl"
    path.write_text(path.read_text().replace('"id": 101', '"id": 999'))
    assert "images.jsonl is not the list" in only(verify(RunFolder(run.folder)))


def test_weights_that_are_others_by_now(tmp_path):
    run = make_run(tmp_path, Case(status=[USED, FAILED]))
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    content = json.loads((run.folder / "run.json").read_text())
    content["teachers"][1]["provenance"] = {
        "weights": str(weights),
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    (run.folder / "run.json").write_text(json.dumps(content))
    assert verify(run.folder) == []
    weights.write_bytes(b"others")
    fault = only(verify(run.folder))
    assert "model.pth" in fault and "teacher other" in fault
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
    merge = json.loads((run.folder / "merge.json").read_text())
    (run.folder / "merge.json").write_text(json.dumps(merge | {"hash": "another"}))
    for shard in run.shards:
        write_shard(run.merged, shard, read_shard(run.merged, shard), "another")
    assert "of an earlier merge" in only(verify(run))
    with pytest.raises(RunError, match="of an earlier merge"):
        export_run(run)


def test_a_stage_that_does_not_say_who_it_is(run):
    (run.folder / "merge.json").write_text("[]")
    assert "merge.json does not say" in only(verify(run))


def test_an_export_of_other_images(run):
    change_side_car(run, lambda x: x["images"].update(list="another"))
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
