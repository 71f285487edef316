"""The unified classes in an order that the user gives, from the merged boxes to exported files."""

import json

import numpy as np
import pytest
from raw_runs import found, make_run, random_detections

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.export import export_run
from kd_d2.projects.pseudo_label.filter import filter_run
from kd_d2.projects.pseudo_label.filters import FilterSettings
from kd_d2.projects.pseudo_label.labelled_run import LabelledRun
from kd_d2.projects.pseudo_label.merge import merge_run
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import read_shard
from kd_d2.projects.pseudo_label.trained_on import exported_classes

USUAL = ("car", "dog", "person", "helmet")
ORDER = ("helmet", "person", "car", "dog")


@pytest.fixture
def run(tmp_path):
    """Two teachers; the second knows its classes by other names, and one of its own."""
    rng = np.random.default_rng(0)
    one, two = (random_detections(rng, 160, images=8, teachers=1) for _ in range(2))
    teachers = {"a": (("car", "dog", "person"), one), "b": (("automobile", "hat", "dog"), two)}
    return make_run(tmp_path / "run", teachers, 8)


@pytest.fixture
def settings(tmp_path):
    maps = {"a": tmp_path / "a.json", "b": tmp_path / "b.json"}
    names = dict(zip(*[("car", "dog", "person")] * 2))
    content = {"classes": names, "allow_unmatched": False, "children": {"helmet": "person"}}
    maps["a"].write_text(json.dumps(content))
    maps["b"].write_text('{"automobile": "car", "hat": "helmet", "dog": "dog"}')
    thresholds = dict(zip(USUAL, (0.4, 0.6, 0.5, 0.3)))
    (tmp_path / "t.json").write_text(json.dumps(thresholds))
    return {
        "class_maps": maps,
        "threshold_mode": "file",
        "threshold_file": tmp_path / "t.json",
    }


def exported(run, name="pseudo.json"):
    return json.loads((run.folder / "export" / name).read_text())


def named(run, name="pseudo.json"):
    """What annotations say, with the names of their classes in place of numbers."""
    names = {x["id"]: x["name"] for x in exported(run, name)["categories"]}
    return sorted(
        (x["image_id"], names[x["category_id"]], x["score"], x["bbox"], x["teacher"], x["votes"])
        for x in exported(run, name)["annotations"]
    )


def through(run, **settings):
    """Merges, filters and exports; returns what ``merge.json`` and ``filter.json`` say."""
    paths = merge_run(run, MergeSettings(**settings)), filter_run(run, FilterSettings())
    export_run(run)
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("mode", ["nms", "wbf"])
def test_boxes_are_the_same_under_other_numbers(run, settings, mode):
    merge, filtered = through(run, **settings, mode=mode)
    usual = {name: named(run, name) for name in ("pseudo.json", "ignore.json")}
    category = [read_shard(run.merged, x).detections.category for x in run.shards]
    counts = np.bincount(np.concatenate(category), minlength=4)
    assert merge["categories"] == list(USUAL) and counts.min() > 5
    other_merge, other_filtered = through(run, **settings, mode=mode, classes=ORDER)
    assert other_merge["categories"] == list(ORDER)
    category = [read_shard(run.merged, x).detections.category for x in run.shards]
    place = [USUAL.index(name) for name in ORDER]
    assert np.bincount(np.concatenate(category)).tolist() == counts[place].tolist()
    assert {name: named(run, name) for name in usual} == usual and len(usual["pseudo.json"]) > 30
    for key in ("known_by", "thresholds", "class_maps", "parents", "agreement", "detections"):
        assert other_merge[key] == merge[key], key
    for key in ("t_keep", "t_ignore", "counters", "kept", "ignored", "images"):
        assert other_filtered[key] == filtered[key], key
    assert LabelledRun(run).known.tolist() == [1, 1, 2, 2]


def test_numbers_by_hand(tmp_path):
    d = found((0, 0, 0, 40, 40, 0.9, 0), (1, 0, 0, 40, 40, 0.8, 1), (2, 0, 0, 40, 40, 0.4, 0))
    run = make_run(tmp_path, {"a": (("car", "dog"), d)})
    through(run, classes=("dog", "car"))
    for name, expected in (("pseudo.json", [(1000, 2), (1001, 1)]), ("ignore.json", [])):
        content = exported(run, name)
        assert [(x["id"], x["name"]) for x in content["categories"]] == [(1, "dog"), (2, "car")]
        assert [(x["image_id"], x["category_id"]) for x in content["annotations"]] == expected
    results = [(x["image_id"], x["category_id"]) for x in exported(run, "results.json")]
    assert results == [(1000, 2), (1001, 1), (1002, 2)]
    assert exported_classes(run.folder / "export") == ["dog", "car"]


def test_another_order_must_be_filtered_anew(run, settings):
    merge, filtered = through(run, **settings)
    files = {x: x.read_bytes() for x in run.folder.rglob("*") if x.parent.name != "export"
             and x.is_file()}  # fmt: skip
    assert "classes" not in merge["settings"]
    other = json.loads(merge_run(run, MergeSettings(**settings, classes=ORDER)).read_text())
    assert other["settings"]["classes"] == list(ORDER) and other["hash"] != merge["hash"]
    with pytest.raises(RunError, match="is of an earlier merge.* run the stage filter again"):
        export_run(run)
    assert json.loads(filter_run(run, FilterSettings()).read_text())["hash"] != filtered["hash"]
    third = json.loads(merge_run(run, MergeSettings(**settings, classes=USUAL[::-1])).read_text())
    assert len({merge["hash"], other["hash"], third["hash"]}) == 3
    # without an order all is as it was, to the byte
    through(run, **settings)
    assert files == {x: x.read_bytes() for x in files}


def test_classes_must_be_those_of_the_teachers(run, settings):
    with pytest.raises(ConfigError, match="The classes lack 'dog' and name 'cat', which no teach"):
        merge_run(run, MergeSettings(**settings, classes=("cat", *ORDER[:3])))
    # names are the unified ones
    with pytest.raises(ConfigError, match="lack 'helmet' and name 'hat'"):
        merge_run(run, MergeSettings(**settings, classes=("hat", *ORDER[1:])))
    assert not (run.folder / "merge.json").exists()
