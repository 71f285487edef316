"""The stage merge on small runs: what it writes, keeps, begins anew and refuses."""

import json
import shutil

import numpy as np
import pytest
from detectron2.structures import BoxMode
from raw_runs import HEIGHT, WIDTH, found, make_run, random_detections, rows_of, write_raw

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import merge as stage
from kd_d2.projects.pseudo_label.calibration import calibrate
from kd_d2.projects.pseudo_label.class_map import ClassMapError
from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.label_set import LabelSet, judge
from kd_d2.projects.pseudo_label.merge import MergeSettings, merge_run
from kd_d2.projects.pseudo_label.merging import merge_nms, merge_wbf
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import (
    FAILED,
    ShardContents,
    ShardError,
    read_shard,
    write_shard,
)
from kd_d2.projects.pseudo_label.thresholds import fbeta_thresholds

CLASSES = ("car", "dog", "person")


def merged_of(run):
    parts = [read_shard(run.merged, shard) for shard in run.shards]
    return Detections.concatenate(p.detections for p in parts)


def merge(run, **settings):
    return json.loads(merge_run(run, MergeSettings(**settings)).read_text())


def without(keys, content):
    return {key: value for key, value in content.items() if key not in keys}


def bytes_of(run):
    return {path.name: path.read_bytes() for path in sorted(run.merged.iterdir())}


def two_teachers(folder, shard_size=3, images=8, n=160, **kwargs):
    """The second one knows its classes by other names, and one of its own."""
    rng = np.random.default_rng(0)
    parts = [random_detections(rng, n, images=images, teachers=1) for _ in range(2)]
    (folder / "b.yaml").write_text("{automobile: car, hat: helmet, dog: dog}")
    teachers = {"a": (CLASSES, parts[0]), "b": (("automobile", "hat", "dog"), parts[1])}
    run = make_run(folder / f"run{shard_size}", teachers, images, shard_size, **kwargs)
    return run, {"class_maps": {"a": None, "b": folder / "b.yaml"}}, parts


def labels(images=8, rows=24):
    """Labels near the boxes of ``random_detections``; every other image has some."""
    truth = random_detections(np.random.default_rng(1), rows * images, images=images, teachers=1)
    dicts = [
        {
            "file_name": f"/data/image_{k}.jpg",
            "image_id": 1000 + k,
            "annotations": [
                {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(c)}
                for box, c in zip(truth.box[truth.image == k], truth.category[truth.image == k])
            ],
        }
        for k in range(0, images, 2)
    ]
    return LabelSet(dicts, ("dog", "car", "tree"), "ours"), truth


def test_one_teacher_stays_as_it_is(tmp_path):
    corner = np.array([[x, y] for x in (0, 60, 120) for y in (0, 50)])
    box = np.tile(np.concatenate([corner, corner + 40], 1), (4, 1))
    score = np.random.default_rng(0).uniform(0.05, 1, 24)
    d = Detections.make(np.repeat(np.arange(4), 6), box, score, np.arange(24) % 3, 5)
    run = make_run(tmp_path, {"a": (CLASSES, d)})
    for mode in ("nms", "wbf", "vote"):
        content = merge(run, mode=mode, threshold=0.7, min_votes=1)
        d.teacher[:] = 0
        expected, merged = d.by_image(), merged_of(run)
        for name in ("image", "box", "score", "category", "teacher", "votes"):
            assert np.array_equal(getattr(merged, name), getattr(expected, name)), name
        assert not content["calibrated"] and content["agreement"] == {"a": {}}
        assert content["thresholds"] == {"a": dict.fromkeys(CLASSES, 0.7)}
        assert content["detections"] == {"raw": {"a": 24}, "merged": 24}


def test_boxes_that_a_teacher_has_twice_become_one(tmp_path):
    d = found((0, 0, 0, 40, 40, 0.9, 0), (0, 1, 0, 41, 40, 0.8, 1), (1, 0, 0, 40, 40, 0.9, 2))
    (tmp_path / "map.json").write_text('{"car": "vehicle", "dog": "vehicle", "person": "drop"}')
    run = make_run(tmp_path / "run", {"a": (CLASSES, d)})
    content = merge(run, class_maps={"a": tmp_path / "map.json"})
    assert merged_of(run).score.tolist() == [np.float32(0.9)]
    assert content["categories"] == ["vehicle"]
    assert content["detections"] == {"raw": {"a": 2}, "merged": 1}
    assert content["class_maps"] == {"a": {"car": "vehicle", "dog": "vehicle", "person": None}}


def test_two_teachers_of_different_classes(tmp_path):
    run, maps, (one, two) = two_teachers(tmp_path)
    thresholds = {"car": 0.4, "dog": 0.6, "person": 0.5, "helmet": 0.3}
    (tmp_path / "t.json").write_text(json.dumps(thresholds))
    content = merge(
        run, **maps, mode="wbf", threshold_mode="file", threshold_file=tmp_path / "t.json"
    )
    assert content["categories"] == ["car", "dog", "person", "helmet"]
    assert content["known_by"] == {
        "car": ["a", "b"],
        "dog": ["a", "b"],
        "person": ["a"],
        "helmet": ["b"],
    }
    of_b = {name: thresholds[name] for name in ("car", "dog", "helmet")}
    assert content["thresholds"]["b"] == of_b and content["calibrated"]
    two.category = np.array([0, 3, 1], np.int16)[two.category]
    two.teacher[:] = 1
    d = Detections.concatenate([one, two])
    d.score = calibrate(d.score, np.array(list(thresholds.values()))[d.category])
    expected = merge_wbf(d, np.array([2, 2, 1, 1]))
    assert rows_of(merged_of(run)) == rows_of(expected)
    assert content["detections"] == {"raw": {"a": 160, "b": 160}, "merged": len(expected)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "wbf", "weights": {"b": 0.5}, "score_type": "box_and_model_avg"},
        {"mode": "vote", "min_votes": 2},
        {"threshold_mode": "per_class_count"},
        {"threshold_mode": "per_class_fbeta"},
    ],
)
def test_the_size_of_shards_does_not_matter(tmp_path, settings):
    if settings.get("threshold_mode"):
        settings = settings | {"labels": labels()[0]}
    contents, found = [], []
    for size in (3, 1000):
        run, maps, _ = two_teachers(tmp_path, size)
        contents.append(without(("made_of", "sha256"), merge(run, **maps, **settings)))
        found.append(merged_of(run))
    assert contents[0] == contents[1]
    assert all(
        np.array_equal(*pair, equal_nan=True) for pair in zip(*(x.arrays().values() for x in found))
    )
    assert len(found[0]) > 50


def test_equal_runs_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run, maps, _ = two_teachers(tmp_path / name)
        merge_run(run, MergeSettings(**maps))
    one, two = (tmp_path / name / "run3" for name in ("one", "two"))
    names = [x.relative_to(one) for x in one.rglob("*") if x.is_file()]
    assert len(names) > 10 and all((one / x).read_bytes() == (two / x).read_bytes() for x in names)


def test_what_is_done_stays(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    content, before = merge(run, **maps), bytes_of(run)
    times = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    calls = []
    merge_run(run, MergeSettings(**maps), lambda *x: calls.append(x))
    assert not calls and times == {x: x.stat().st_mtime_ns for x in run.folder.rglob("*")}
    # one shard is missing: it alone is made again
    lost = run.merged / f"{run.shards[1].name}.done"
    lost.unlink()
    merge_run(run, MergeSettings(**maps), lambda *x: calls.append(x))
    assert calls == [(1, 3), (2, 3), (3, 3)] and bytes_of(run) == before
    kept = [x for x in run.merged.iterdir() if run.shards[1].name not in x.name]
    assert len(kept) == 4 and all(x.stat().st_mtime_ns == times[x] for x in kept)
    assert json.loads((run.folder / "merge.json").read_text()) == content


def test_other_settings_begin_anew(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    first = merge(run, **maps)
    before = bytes_of(run)
    for settings in (
        {"mode": "wbf"},
        {"iou": 0.4},
        {"threshold": 0.6},
        {"class_maps": {"b": write_map(tmp_path)}},
    ):
        content = merge(run, **(maps | settings))
        assert content["hash"] != first["hash"] and bytes_of(run) != before
    assert merge(run, **maps) == first and bytes_of(run) == before


def write_map(folder):
    (folder / "other.yaml").write_text("{automobile: car, hat: drop, dog: dog}")
    return folder / "other.yaml"


def test_how_thresholds_were_found_does_not_matter_for_the_boxes(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    first, before = merge(run, **maps), bytes_of(run)
    (tmp_path / "t.json").write_text(json.dumps(first["thresholds"]))
    again = merge(run, **maps, threshold_mode="file", threshold_file=tmp_path / "t.json")
    assert again["hash"] == first["hash"] and bytes_of(run) == before
    assert again["settings"]["threshold_mode"] == "file"


def test_only_what_was_generated_anew_is_merged_anew(tmp_path):
    run, maps, parts = two_teachers(tmp_path, failed={"b": [4]})
    first, before = merge(run, **maps), bytes_of(run)
    times = {x.name: x.stat().st_mtime_ns for x in run.merged.iterdir()}
    write_raw(run, run.teachers[1], parts[1])  # the image is mended
    second, after = merge(run, **maps), bytes_of(run)
    changed = [name for name in after if after[name] != before[name]]
    assert [x.partition(".")[0] for x in changed] == [run.shards[1].name] * 2
    kept = [x for x in run.merged.iterdir() if x.name not in changed]
    assert len(kept) == 4 and all(x.stat().st_mtime_ns == times[x.name] for x in kept)
    assert 4 in merged_of(run).image and read_shard(run.merged, run.shards[1]).failed == {}
    assert second["hash"] == first["hash"] and second["made_of"] != first["made_of"]
    # as if it had never been broken
    (tmp_path / "fresh").mkdir()
    fresh, maps, _ = two_teachers(tmp_path / "fresh")
    assert merge(fresh, **maps) == second and bytes_of(fresh) == after


def test_a_record_that_was_changed_is_written_anew(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    content = merge(run, **maps)
    changed = content | {"detections": content["detections"] | {"merged": 7}}
    (run.folder / "merge.json").write_text(json.dumps(changed))
    assert merge(run, **maps) == content


def test_raw_shards_whose_record_is_none(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    for text in ("{}", "[]"):
        (run.raw(run.teachers[0]) / f"{run.shards[0].name}.done").write_text(text)
        with pytest.raises(RunError, match="1 of 3 shards of a in .* are not complete"):
            merge(run, **maps)


def test_stopped_halfway(tmp_path, monkeypatch):
    run, maps, _ = two_teachers(tmp_path)
    merge(run, **maps)

    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_run(run, MergeSettings(**maps, mode="wbf"), stop)
    # what was merged in the other way is not to be found by anybody
    assert not (run.folder / "merge.json").exists() and len(list(run.merged.iterdir())) == 4
    merge(run, **maps, mode="wbf")
    resumed = bytes_of(run) | {"": (run.folder / "merge.json").read_bytes()}
    shutil.rmtree(run.merged)
    (run.folder / "merge.json").unlink()
    merge(run, **maps, mode="wbf")
    assert resumed == bytes_of(run) | {"": (run.folder / "merge.json").read_bytes()}


def test_images_that_one_teacher_cannot_read(tmp_path):
    run, maps, _ = two_teachers(tmp_path, failed={"a": [1], "b": [4, 1]})
    merge(run, **maps)
    merged = merged_of(run)
    assert sorted(set(merged.image.tolist())) == [0, 2, 3, 5, 6, 7]
    contents = [read_shard(run.merged, shard) for shard in run.shards]
    assert [x.failed for x in contents] == [{1: "broken"}, {4: "broken"}, {}]
    sizes = np.concatenate([x.sizes for x in contents])
    assert sizes[[1, 4]].tolist() == [[0, 0]] * 2
    assert (np.delete(sizes, [1, 4], 0) == [HEIGHT, WIDTH]).all()
    assert contents[0].status.tolist() == [0, FAILED, 0]


def test_an_image_that_changed_between_the_teachers(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    teacher, shard = run.teachers[1], run.shards[0]
    contents = read_shard(run.raw(teacher), shard)
    contents.sizes[2] = [WIDTH, HEIGHT]
    write_shard(
        run.raw(teacher), shard, ShardContents(contents.detections, contents.sizes, {}), teacher.run
    )
    with pytest.raises(RunError, match="a and b saw images of the shard 000000-.* different sizes"):
        merge(run, **maps)


def test_agreement_of_teachers(tmp_path):
    t = 0.5
    one = found(
        (0, 0, 0, 40, 40, 0.9, 0),  # matched
        (0, 60, 0, 90, 40, 0.9, 0),  # the other one has a dog there
        (0, 100, 0, 140, 40, 0.9, 0),  # only below its threshold
        (1, 0, 0, 40, 40, 0.4, 0),  # itself below
        (1, 100, 0, 140, 40, 0.9, 2),  # the other one knows no person
    )
    two = found(
        (0, 0, 0, 40, 20, 0.6, 0),  # IoU 0.5
        (0, 60, 0, 90, 40, 0.9, 1),
        (0, 100, 0, 140, 40, 0.4, 0),
        (1, 0, 0, 40, 40, 0.8, 0),
    )
    run = make_run(
        tmp_path, {"a": (CLASSES, one), "b": (CLASSES[:2], two), "c": (("cow",), found())}
    )
    content = merge(run, threshold=t)
    assert content["agreement"] == {
        "a": {"b": pytest.approx(1 / 3), "c": None},
        "b": {"a": pytest.approx(1 / 3), "c": None},
        "c": {"a": None, "b": None},
    }


def test_thresholds_by_count(tmp_path):
    run, maps, parts = two_teachers(tmp_path, failed={"b": [3]})
    label_set, truth = labels(rows=10)
    content = merge(run, **maps, threshold_mode="per_class_count", labels=label_set)
    mean = {
        c: (truth.category[truth.image % 2 == 0] == k).sum() / 4
        for k, c in enumerate(("dog", "car"))
    }
    parts[1] = parts[1][parts[1].image != 3]
    for name, d, own, images in (
        ("a", parts[0], {"car": 0, "dog": 1}, 8),
        ("b", parts[1], {"car": 0, "dog": 2}, 7),
    ):
        for c, number in own.items():
            score = np.sort(d.score[d.category == number])[::-1]
            rank = int(np.floor(mean[c] * images + 0.5))
            expected = float(score[rank - 1])
            assert content["thresholds"][name][c] == expected and 0.3 < expected < 0.9
    assert content["thresholds"]["a"]["person"] == content["thresholds"]["b"]["helmet"] == 0.5


def test_thresholds_by_fbeta(tmp_path):
    run, maps, parts = two_teachers(tmp_path, failed={"b": [2]})
    label_set, _ = labels()
    settings = {"threshold_mode": "per_class_fbeta", "labels": label_set, "limits": (0.05, 0.95)}
    content = merge(run, **maps, **settings)
    names = tuple(content["categories"])
    for name, d, number, read in (
        ("a", parts[0], [0, 1, 2], (0, 2, 4, 6)),
        ("b", parts[1], [0, 3, 1], (0, 4, 6)),
    ):
        d.category = np.array(number, np.int16)[d.category]
        truth = label_set.boxes([(k, label_set.dicts[k // 2]) for k in read], names)
        judged, hit = judge(d[np.isin(d.image, read)], truth)
        num = np.bincount(truth.category, minlength=4)
        expected = fbeta_thresholds(judged.category, judged.score, hit, num, 0.5, 0.5, (0.05, 0.95))
        expected = dict(zip(names, expected.tolist()))
        assert content["thresholds"][name] == {c: expected[c] for c in content["thresholds"][name]}
        assert 0.05 < expected["car"] != 0.5 and expected["person"] == expected["helmet"] == 0.5


def test_children_below_their_threshold_replace_nothing(tmp_path):
    d = found(
        (0, 0, 0, 40, 40, 0.9, 0), (0, 0, 0, 40, 40, 0.6, 1),
        (1, 0, 0, 40, 40, 0.9, 0), (1, 0, 0, 40, 40, 0.5, 1),
    )  # fmt: skip
    (tmp_path / "map.yaml").write_text(
        "classes: {vehicle: vehicle, car: car}\nchildren: {car: vehicle}"
    )
    run = make_run(tmp_path / "run", {"a": (("vehicle", "car"), d)})
    content = merge(run, class_maps={"a": tmp_path / "map.yaml"}, threshold=0.6)
    merged = merged_of(run)
    assert merged.image.tolist() == [0, 1, 1] and merged.category.tolist() == [1, 0, 1]
    assert content["parents"] == {"car": "vehicle"}


def test_children_of_several_teachers_are_judged_on_the_common_scale(tmp_path):
    d = found(
        (0, 0, 0, 40, 40, 0.9, 0), (0, 0, 0, 40, 40, 0.71, 1),
        (1, 0, 0, 40, 40, 0.9, 0), (1, 0, 0, 40, 40, 0.69, 1),
    )  # fmt: skip
    (tmp_path / "map.yaml").write_text(
        "classes: {vehicle: vehicle, car: car}\nchildren: {car: vehicle}"
    )
    classes = "vehicle", "car"
    run = make_run(tmp_path / "run", {"a": (classes, d), "b": (classes, found())})
    merge(run, class_maps={"a": tmp_path / "map.yaml"}, threshold=0.7)
    merged = merged_of(run)
    assert merged.image.tolist() == [0, 1, 1] and merged.category.tolist() == [1, 0, 1]


def test_no_detection_at_all(tmp_path):
    run = make_run(tmp_path, {"a": (CLASSES, found()), "b": (CLASSES, found())}, num_images=7)
    for mode in ("nms", "wbf", "vote"):
        content = merge(run, mode=mode)
        assert content["detections"]["merged"] == 0 and len(merged_of(run)) == 0


def test_no_image_at_all(tmp_path):
    run = make_run(tmp_path, {"a": (CLASSES, found())}, num_images=0)
    assert merge(run)["detections"] == {"raw": {"a": 0}, "merged": 0}


def test_raw_shards_must_be_complete(tmp_path):
    run, maps, parts = two_teachers(tmp_path)
    for shard in run.shards[1:]:
        (run.raw(run.teachers[1]) / f"{shard.name}.done").unlink()
    with pytest.raises(
        RunError, match="2 of 3 shards of b in .* are not complete: run the stage gen"
    ):
        merge(run, **maps)
    assert not run.merged.exists()
    write_raw(run, run.teachers[1], parts[1])
    merge(run, **maps)


def test_raw_shards_of_another_run(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    record = run.raw(run.teachers[0]) / f"{run.shards[0].name}.done"
    record.write_text(record.read_text().replace("run of a", "another"))
    with pytest.raises(ShardError, match="of another run"):
        merge(run, **maps)


def test_a_raw_shard_that_was_changed(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    path = run.raw(run.teachers[0]) / f"{run.shards[2].name}.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="was changed after it was written"):
        merge(run, **maps)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_maps": {"c": None}}, "For a class map: Unknown teacher 'c'"),
        ({"mode": "wbf", "weights": {"c": 2}}, "For a weight: Unknown teacher 'c'"),
        (
            {"mode": "vote", "min_votes": 3},
            r"MIN_VOTES \(--min-votes\) is 3, but the run has 2 teachers",
        ),
        ({"class_maps": {"a": "none.yaml"}}, "cannot be read"),
        ({"threshold_mode": "file", "threshold_file": "none.json"}, "cannot be read"),
    ],
)
def test_settings_that_do_not_fit_the_run(tmp_path, settings, words):
    run, _, _ = two_teachers(tmp_path)
    with pytest.raises((ConfigError, ClassMapError), match=words):
        merge(run, **settings)
    assert not run.merged.exists()


@pytest.mark.parametrize("mode", ["per_class_fbeta", "per_class_count"])
def test_labels_that_do_not_fit_the_run(tmp_path, mode):
    run, maps, _ = two_teachers(tmp_path)
    label_set, _ = labels()
    foreign = LabelSet(label_set.dicts, ("tree", "bush", "grass"), "plants")
    with pytest.raises(
        ConfigError, match="of the classes of plants|No class has 10 boxes of plants"
    ):
        merge(run, **maps, threshold_mode=mode, labels=foreign)


def test_labels_of_other_images(tmp_path):
    run, maps, _ = two_teachers(tmp_path)
    label_set, _ = labels()
    moved = [x | {"file_name": f"/other/{k}.jpg"} for k, x in enumerate(label_set.dicts)]
    moved = LabelSet(moved, label_set.classes, "theirs")
    with pytest.raises(ConfigError, match="None of the images of theirs is in the run"):
        merge(run, **maps, threshold_mode="per_class_fbeta", labels=moved)
    # frequencies are of any images
    counted = merge(run, **maps, threshold_mode="per_class_count", labels=moved)
    assert counted["settings"]["labels"] == "theirs"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "soft"}, r"MERGE.MODE \(--merge\) is 'soft'; it must be one of nms, wbf, vote"),
        ({"score_type": "sum"}, r"SCORE_TYPE \(--score-type\) is 'sum'"),
        ({"threshold_mode": "guess"}, r"MERGE.THRESHOLDS \(--thresholds\) is 'guess'"),
        ({"iou": 1.5}, r"MERGE.IOU \(--merge-iou\) is 1.5; it must be between 0 and 1"),
        ({"threshold": 0}, r"THRESHOLD \(--threshold\) is 0; it must be between 0 and 1"),
        ({"threshold": float("nan")}, r"THRESHOLD \(--threshold\) is nan"),
        ({"limits": (0.9, 0.3)}, "LIMITS .* is"),
        ({"beta": 0}, "BETA .* is 0; it must be above 0"),
        ({"min_votes": 0}, r"MIN_VOTES \(--min-votes\) is 0"),
        ({"parent_iou": 0}, "parent_iou is 0"),
        ({"mode": "wbf", "weights": {"a": 0}}, "weights is"),
        ({"weights": {"a": 2}}, "with the mode wbf only"),
        ({"threshold_mode": "file"}, "go together"),
        ({"threshold_file": "t.json"}, "go together"),
        ({"threshold_mode": "per_class_count"}, "per_class_count needs a labelled data set"),
        ({"classes": ("car", "dog", "car")}, r"CLASSES \(--classes\) has 'car' more than once"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        MergeSettings(**settings)


def test_merging_is_by_shards(tmp_path, monkeypatch):
    """Never more than one shard's detections are merged at once."""
    run, maps, parts = two_teachers(tmp_path)
    sizes = []

    def counting(d, iou):
        sizes.append(len(d))
        return merge_nms(d, iou)

    monkeypatch.setattr(stage, "merge_nms", counting)
    merge(run, **maps)
    images = np.concatenate([d.image for d in parts])
    assert sizes == np.bincount(images // 3).tolist()
