"""All stages after generate in a row: what they make, what stays, and what is made anew."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from detectron2.structures import BoxMode
from generate_cases import write_image
from raw_runs import HEIGHT, WIDTH, random_detections, write_raw

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import offline
from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.filter import filter_run
from kd_d2.projects.pseudo_label.filters import FilterSettings
from kd_d2.projects.pseudo_label.label_set import LabelSet
from kd_d2.projects.pseudo_label.merge import merge_run
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.publish import ChangedFileError
from kd_d2.projects.pseudo_label.report import write_report
from kd_d2.projects.pseudo_label.run_folder import (
    ImageRecord,
    RunError,
    RunFolder,
    TeacherRecord,
)
from kd_d2.projects.pseudo_label.sheet import SheetSettings, write_sheet
from kd_d2.projects.pseudo_label.statistics import statistics
from kd_d2.projects.pseudo_label.teachers import teacher_hash
from kd_d2.projects.pseudo_label.verify import verify

CLASSES = ("car", "dog", "person")
STAGES = ("merge", "filter", "export", "report", "sheet")
FOLDERS = {"merge": "merged", "filter": "filtered"}
SETTINGS = MergeSettings(), FilterSettings(), ExportSettings()
SHEET = SheetSettings(cells=1, most_cells=1)  # quickly drawn


def label_images(*args, sheet=SHEET, **kwargs):
    return offline.label_images(*args, sheet=sheet, **kwargs)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    images = [
        ImageRecord(str(folder / f"{k}.png"), f"{k}.png", 1000 + k, "made up") for k in range(6)
    ]
    for k, image in enumerate(images):
        write_image(folder / image.name, HEIGHT, WIDTH, k)
    teachers = [TeacherRecord(name, CLASSES, teacher_hash({}), {}) for name in ("a", "b")]
    run = RunFolder.create(folder / "run", str(folder), images, teachers, 4)
    rng = np.random.default_rng(0)
    for teacher in teachers:
        write_raw(run, teacher, random_detections(rng, 60, images=6, teachers=1))
    return run


@pytest.fixture
def run(generated, tmp_path):
    """Only the stage generate is done."""
    shutil.copytree(generated.folder, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def truth_of(run, shift=0.0):
    boxes = random_detections(np.random.default_rng(1), 60, images=6, teachers=1)
    records = [
        {
            "file_name": image.file_name,
            "image_id": image.id,
            "annotations": [
                {"bbox": [b + shift for b in box], "bbox_mode": BoxMode.XYXY_ABS, "category_id": c}
                for box, c in zip(
                    boxes.box[boxes.image == k].tolist(), boxes.category[boxes.image == k].tolist()
                )
            ],
        }
        for k, image in enumerate(run.images())
    ]
    return LabelSet(records, CLASSES, "people")


def times(run):
    return {x: x.stat().st_mtime_ns for x in sorted(run.folder.rglob("*"))}


def redone(run, before):
    """The stages that wrote files since."""
    after = times(run)
    changed = [x for x in after if x.is_file() and after[x] != before.get(x)]
    return [
        stage
        for stage in STAGES
        if any(FOLDERS.get(stage, stage) in (x.parent.name, x.stem) for x in changed)
    ]


def test_it_is_every_stage_in_a_row(run, generated, tmp_path):
    truth = truth_of(run)
    folder = label_images(run, *SETTINGS, labels=truth, truth=truth, sheet=replace(SHEET, seed=3))
    assert folder == run.folder / "export" and verify(run) == []
    one_by_one = RunFolder(shutil.copytree(generated.folder, tmp_path / "one_by_one" / "run"))
    merge_run(one_by_one, SETTINGS[0])
    filter_run(one_by_one, SETTINGS[1])
    paths = export_run(one_by_one, SETTINGS[2])[:-1]  # the side-car tells the time
    paths += write_report(one_by_one, statistics(one_by_one, truth, truth))
    paths += write_sheet(one_by_one, replace(SHEET, seed=3))
    assert len(paths) > 8
    for path in paths:
        twin = run.folder / path.relative_to(one_by_one.folder)
        assert twin.read_bytes() == path.read_bytes(), path.name
    assert len(json.loads((folder / "pseudo.json").read_text())["annotations"]) > 20


def test_what_is_done_is_left_alone(run):
    truth = truth_of(run)
    given = {"labels": truth, "truth": truth}
    label_images(run, *SETTINGS, **given)
    before = times(run)
    assert label_images(RunFolder(run.folder), *SETTINGS, **given) == run.folder / "export"
    assert times(run) == before


FILTERED = ["filter", "export", "report", "sheet"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"merge": MergeSettings(threshold=0.6)}, list(STAGES)),
        ({"merge": MergeSettings(classes=CLASSES[::-1])}, list(STAGES)),
        ({"filter": FilterSettings(max_boxes=2)}, FILTERED),
        ({"export": ExportSettings(weight_mode="linear")}, ["export"]),
        ({"export": ExportSettings(formats=("coco", "yolo"))}, ["export"]),
        ({"category_ids": {"car": 3, "dog": 18, "person": 1}}, ["export"]),
        ({"sheet": replace(SHEET, seed=1)}, ["sheet"]),
        ({"labels": "people"}, ["report"]),
        ({"truth": "people"}, ["report"]),
    ],
)
def test_what_has_changed_is_made_anew(run, change, expected):
    settings = dict(zip(("merge", "filter", "export"), SETTINGS))
    label_images(run, **settings)
    first = (run.folder / "export" / "pseudo.json").read_bytes()
    for key in change.keys() & {"labels", "truth"}:
        change = change | {key: truth_of(run)}
    before = times(run)
    label_images(run, **settings | change)
    assert redone(run, before) == expected
    before = times(run)
    label_images(run, **settings | change)
    assert times(run) == before
    # and back
    label_images(run, **settings)
    assert redone(run, before) == expected
    assert (run.folder / "export" / "pseudo.json").read_bytes() == first and verify(run) == []


def test_labels_that_people_have_changed(run):
    label_images(run, *SETTINGS, truth=truth_of(run))
    before = times(run)
    label_images(run, *SETTINGS, truth=truth_of(run, shift=0.5))
    assert redone(run, before) == ["report"]
    before = times(run)
    other_name = replace(truth_of(run, shift=0.5), name="others")
    label_images(run, *SETTINGS, truth=other_name)
    assert redone(run, before) == ["report"]


def test_a_changed_file_is_never_overwritten(run):
    label_images(run, *SETTINGS)
    path = run.folder / "export" / "pseudo.json"
    damaged = path.read_bytes()[:-20]
    path.write_bytes(damaged)
    before = times(run)
    for settings in (SETTINGS, (*SETTINGS[:2], ExportSettings(weight_mode="score"))):
        with pytest.raises(ChangedFileError, match="pseudo.json was changed or put there"):
            label_images(run, *settings)
        assert path.read_bytes() == damaged and times(run) == before
    with pytest.raises(ChangedFileError, match="pseudo.json was changed or put there"):
        label_images(run, MergeSettings(threshold=0.6), *SETTINGS[1:])
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("export/pseudo.json", ["export"]),
        ("export/provenance.json", None),
        ("report/report.md", ["report"]),
        ("sheet/cvat.zip", ["sheet"]),
        ("offline.json", ["export", "report", "sheet"]),
        ("filter.json", ["filter"]),  # comes out as it was
    ],
)
def test_what_is_lost_is_made_again(run, lost, expected):
    label_images(run, *SETTINGS)
    before = times(run)
    (run.folder / lost).unlink()
    if expected is None:  # nobody knows any more who wrote the other files
        with pytest.raises(ChangedFileError):
            label_images(run, *SETTINGS)
        return
    label_images(run, *SETTINGS)
    assert (run.folder / lost).exists() and redone(run, before) == expected
    assert verify(run) == []


def test_what_others_have_made_of_the_run_in_between(run):
    """Each stage by itself, with other settings: the record still is of the first ones."""
    label_images(run, *SETTINGS)
    first = {x: x.read_bytes() for x in run.folder.glob("*/*.*") if x.stem != "provenance"}
    merge_run(run, MergeSettings(threshold=0.6))
    filter_run(run, SETTINGS[1])
    export_run(run, category_ids={"car": 7, "dog": 8, "person": 9})
    write_report(run, statistics(run))
    write_sheet(run, replace(SHEET, seed=5))
    label_images(run, *SETTINGS)
    assert {x: x.read_bytes() for x in first} == first and verify(run) == []


def test_stopped_between_two_stages(run, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(offline, "write_sheet", stop)
        label_images(run, *SETTINGS)
    before = times(run)
    label_images(run, *SETTINGS)
    assert redone(run, before) == ["sheet"]


def test_an_export_that_was_cut_off(run):
    label_images(run, *SETTINGS)
    before = times(run)
    (run.folder / "export" / ".new").mkdir()
    label_images(run, *SETTINGS)
    assert redone(run, before) == ["export"] and verify(run) == []


def test_what_cannot_be_done(run):
    with pytest.raises(ConfigError, match="The classes lack 'person'"):
        label_images(run, MergeSettings(classes=CLASSES[:2]), *SETTINGS[1:])
    next(run.raw(run.teachers[1]).glob("*.done")).unlink()
    with pytest.raises(RunError, match="1 of 2 shards of b .* run the stage generate"):
        label_images(run, *SETTINGS)
    assert not (run.folder / "export").exists()
