"""The stage filter on small runs: thresholds, what it writes, and what becomes of images."""

import json

import numpy as np
import pytest
from raw_runs import found, make_run, random_detections, rows_of

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import filter as stage
from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.filter import FilterSettings, filter_run
from kd_d2.projects.pseudo_label.labelled_run import LabelledRun
from kd_d2.projects.pseudo_label.merge import MergePlan, MergeSettings, merge_run
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import FAILED, UNCERTAIN, USED, ShardError, read_shard

CLASSES = ("car", "dog")
D = found(
    (0, 0, 0, 40, 40, 0.9, 0),
    (0, 50, 0, 90, 40, 0.65, 0),
    (0, 100, 0, 140, 40, 0.65, 1),
    (0, 100, 50, 140, 90, 0.35, 1),
    (1, 0, 0, 40, 40, 0.55, 0),  # uncertain
    (2, 0, 0, 40, 40, 0.2, 0),  # nothing
    (3, 0, 0, 40, 40, 0.9, 0),  # cannot be read
    (4, 0, 0, 3, 40, 0.9, 0),  # small, but who knows what it is
    (6, 10, 10, 150, 90, 0.8, 1),
)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "t.json").write_text('{"car": 0.7, "dog": 0.5}')
    run = make_run(tmp_path / "run", {"a": (CLASSES, D)}, 7, failed={"a": [3]})
    merge_run(run, MergeSettings(threshold_mode="file", threshold_file=tmp_path / "t.json"))
    return run


def filtered(run, **settings):
    return json.loads(filter_run(run, FilterSettings(**settings)).read_text())


def boxes_of(run, folder):
    return Detections.concatenate(read_shard(folder, shard).detections for shard in run.shards)


def status_of(run, folder):
    return np.concatenate([read_shard(folder, shard).status for shard in run.shards]).tolist()


def test_thresholds_of_one_teacher(run):
    content = filtered(run)
    assert content["t_keep"] == {"car": 0.7, "dog": 0.5}
    assert content["t_ignore"] == {"car": pytest.approx(0.5), "dog": pytest.approx(0.3)}
    pseudo, ignore = (boxes_of(run, x) for x in (run.filtered, run.ignored))
    assert pseudo.score == pytest.approx([0.9, 0.65, 0.8])
    assert pseudo.category.tolist() == [0, 1, 1] and pseudo.image.tolist() == [0, 0, 6]
    assert ignore.score == pytest.approx([0.65, 0.35, 0.55])
    assert content["kept"] == {"car": 1, "dog": 2}
    assert content["ignored"] == {"car": 1, "dog": 1}  # one of three is in an image that goes
    assert content["images"] == {
        "used": 4,
        "failed": 1,
        "uncertain": 2,
        "ambiguous": 0,
        "empty": 0,
    }
    expected = [USED, UNCERTAIN, USED, FAILED, UNCERTAIN, USED, USED]
    assert status_of(run, run.filtered) == status_of(run, run.ignored) == expected
    fell = {name: n for name, n in content["counters"].items() if n}
    assert fell == {"small": 1, "low_score": 1, "uncertain": 3, "of_dropped_images": 1}


def test_thresholds_of_several_teachers(tmp_path):
    run = make_run(tmp_path, {"a": (CLASSES, D), "b": (CLASSES, found())}, 7)
    merge_run(run, MergeSettings(threshold=0.7))
    content = filtered(run)
    assert content["t_keep"] == {"car": 0.5, "dog": 0.5}
    assert content["t_ignore"] == {"car": pytest.approx(0.3), "dog": pytest.approx(0.3)}
    # what reached the teacher's own threshold, and nothing else
    pseudo = boxes_of(run, run.filtered)
    assert len(pseudo) == ((D.score >= 0.7) & (D.image != 4)).sum() == 3


def test_a_given_t_ignore(run):
    content = filtered(run, t_ignore=0.45)
    assert content["t_ignore"] == {"car": 0.45, "dog": 0.45}
    with pytest.raises(
        ConfigError, match=r"T_IGNORE \(--ignore-from\) is 0.6, above the threshold 0.5 of 'dog'"
    ):
        filtered(run, t_ignore=0.6)


def test_images_without_boxes(run):
    assert filtered(run, empty_images="keep")["images"]["used"] == 6
    assert filtered(run, empty_images="drop")["images"]["empty"] == 4
    content = filtered(run, max_ambiguous_ratio=0.4)
    assert content["images"]["ambiguous"] == 1 and content["kept"] == {"car": 0, "dog": 1}
    assert content["counters"]["of_dropped_images"] == 5
    assert len(boxes_of(run, run.filtered)) == 3  # they are still there to be looked at


def alone(folder, score, teachers):
    """Of several teachers, only the first finds something, in the first of two images."""
    d = found((0, 0, 0, 40, 40, score, 0))
    others = {f"b{k}": (("car",), found()) for k in range(teachers - 1)}
    return make_run(folder, {"a": (("car",), d), **others}, 2)


@pytest.mark.parametrize("mode, teachers", [("vote", 2), ("vote", 3), ("wbf", 2), ("wbf", 4)])
def test_what_one_teacher_is_sure_of_is_no_true_negative(tmp_path, mode, teachers):
    """0.95 of one of four teachers is 0.2375 after wbf."""
    run = alone(tmp_path / "sure", 0.95, teachers)
    merge_run(run, MergeSettings(mode=mode))
    content = filtered(run)
    status = status_of(run, run.filtered)
    assert status == status_of(run, run.ignored) == [UNCERTAIN, USED]
    assert (content["kept"], content["ignored"]) == ({"car": 0}, {"car": 0})
    assert status_of(run, run.filtered) == [UNCERTAIN, USED]
    # on the common scale, t_ignore is 0.3
    for score, expected in ((0.41, USED), (0.43, UNCERTAIN)):
        run = alone(tmp_path / f"{score}", score, teachers)
        merge_run(run, MergeSettings(mode=mode, threshold=0.7))
        assert filtered(run)["t_ignore"] == {"car": pytest.approx(0.3)}
        assert status_of(run, run.filtered) == [expected, USED]


def test_with_nms_and_with_one_teacher_merged_scores_say_it(tmp_path):
    for mode, teachers, expected in (("nms", 2, 0.95), ("wbf", 1, 0.95)):
        run = alone(tmp_path / mode, 0.95, teachers)
        merge_run(run, MergeSettings(mode=mode))
        assert filtered(run)["kept"] == {"car": 1}
        merged = read_shard(run.merged, run.shards[0])
        assert merged.highest is None and merged.detections.score == pytest.approx([expected])


def test_a_teacher_whose_classes_are_united(tmp_path):
    """Three kinds of a car in one place: (0.6 + 0.06 + 0.06) / 3 = 0.24 is below t_ignore."""
    (tmp_path / "a.yaml").write_text("{sedan: car, coupe: car, van: car}")
    rows = [(0, 0, 0, 40, 40, score, c) for c, score in enumerate((0.6, 0.06, 0.06))]
    run = make_run(tmp_path / "run", {"a": (("sedan", "coupe", "van"), found(*rows))}, 2)
    merge_run(run, MergeSettings(mode="wbf", class_maps={"a": tmp_path / "a.yaml"}))
    assert boxes_of(run, run.merged).score == pytest.approx([0.24])
    filtered(run)
    assert status_of(run, run.filtered) == [UNCERTAIN, USED]


@pytest.mark.parametrize("mode", ["vote", "wbf"])
def test_images_without_boxes_against_a_loop(tmp_path, mode):
    """Teachers with thresholds of their own, in shards of three images."""
    rng, names = np.random.default_rng(3), ("a", "b", "c")
    parts = [random_detections(rng, 12, images=20, classes=2, teachers=1) for _ in names]
    thresholds = {t: {"car": 0.4 + k / 10, "dog": 0.9 - k / 10} for k, t in enumerate(names)}
    (tmp_path / "t.json").write_text(json.dumps(thresholds))
    run = make_run(tmp_path / "run", {t: (CLASSES, d) for t, d in zip(names, parts)}, 20)
    file = {"threshold_mode": "file", "threshold_file": tmp_path / "t.json"}
    merge_run(run, MergeSettings(mode=mode, min_votes=3, **file))
    filtered(run, t_ignore=0.35)
    kept, status = boxes_of(run, run.filtered), status_of(run, run.filtered)
    for image in range(20):
        sure = False
        for teacher, d in zip(names, parts):
            for k in np.flatnonzero(d.image == image):
                t, s = thresholds[teacher][CLASSES[d.category[k]]], d.score[k]
                common = s / (2 * t) if s < t else 0.5 + 0.5 * (s - t) / (1 - t)
                sure = sure or common >= 0.35
        empty = image not in kept.image
        assert status[image] == (UNCERTAIN if sure and empty else USED)
    assert {USED, UNCERTAIN} == {s for k, s in enumerate(status) if k not in kept.image}


def test_merged_shards_without_the_highest_scores_are_made_anew(tmp_path, monkeypatch):
    run, settings = alone(tmp_path, 0.95, 2), MergeSettings(mode="vote")
    with monkeypatch.context() as patch:
        patch.setattr(MergePlan, "lowers", False)  # as it was once
        merge_run(run, settings)
        filtered(run)
        assert status_of(run, run.filtered) == [USED, USED]
    merge_run(run, settings)
    filtered(run)
    assert status_of(run, run.filtered) == [UNCERTAIN, USED]


def test_what_is_done_stays_and_other_settings_begin_anew(run):
    first = filtered(run)
    times = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    assert filtered(run) == first
    assert times == {x: x.stat().st_mtime_ns for x in run.folder.rglob("*")}
    other = filtered(run, max_boxes=1)
    assert other["hash"] != first["hash"] and other["counters"]["too_many"] == 1
    assert len(boxes_of(run, run.filtered)) == 2
    assert filtered(run) == first and len(boxes_of(run, run.filtered)) == 3
    (run.ignored / f"{run.shards[0].name}.npz").unlink()
    assert filtered(run) == first and len(boxes_of(run, run.ignored)) == 3


def test_stopped_halfway(run, monkeypatch):
    filtered(run)
    expected = filtered(run, max_boxes=1)
    filtered(run)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "write_shard", stop)
        filtered(run, max_boxes=1)
    # nobody takes what is there for a filtered run
    assert not (run.folder / "filter.json").exists() and not list(run.filtered.glob("*"))
    assert filtered(run, max_boxes=1) == expected


def test_another_merge_is_filtered_anew(run):
    first = filtered(run)
    merge_run(run, MergeSettings(threshold=0.5))
    second = filtered(run)
    assert second["hash"] != first["hash"] and second["t_keep"] == {"car": 0.5, "dog": 0.5}


def test_the_size_of_shards_does_not_matter(tmp_path):
    contents, boxes = [], []
    d = random_detections(np.random.default_rng(0), 400, images=11, classes=2, teachers=1)
    for size in (3, 1000):
        run = make_run(tmp_path / str(size), {"a": (CLASSES, d), "b": (CLASSES, d)}, 11, size)
        merge_run(run, MergeSettings(mode="wbf"))
        content = filtered(run, duplicate_iou=0.6, max_boxes=3)
        of_shards = ("hash", "made_of", "sha256")
        contents.append({key: value for key, value in content.items() if key not in of_shards})
        boxes.append([rows_of(boxes_of(run, x)) for x in (run.filtered, run.ignored)])
    assert contents[0] == contents[1] and boxes[0] == boxes[1]
    assert min(map(len, boxes[0])) > 10


def test_the_next_stages_can_read_it(run):
    filtered(run)
    labelled = LabelledRun(run)
    assert labelled.categories == list(CLASSES) and labelled.known.tolist() == [1, 1]
    assert labelled.t_keep == pytest.approx([0.7, 0.5])
    parts = [labelled.read(shard) for shard in run.shards]
    assert sum(len(p.kept) for p in parts) == 3 and sum(len(p.ignored) for p in parts) == 2


def test_merge_comes_first(tmp_path):
    run = make_run(tmp_path, {"a": (CLASSES, D)}, 7)
    with pytest.raises(RunError, match="run the stage merge first"):
        filtered(run)
    merge_run(run, MergeSettings())
    (run.merged / f"{run.shards[2].name}.done").unlink()
    with pytest.raises(RunError, match="1 of 3 shards in .* are not complete: run the stage merge"):
        filtered(run)


def test_a_merged_shard_that_was_changed(run):
    path = run.merged / f"{run.shards[0].name}.npz"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="was changed"):
        filtered(run)


def test_agreement_that_nobody_has_looked_at(run):
    with pytest.raises(ConfigError, match=r"MIN_AGREEMENT \(--min-agreement\) needs to know"):
        filtered(run, min_agreement=0.7)


def test_agreement_with_the_mirrored_image(tmp_path):
    d = found(*((k, 0, 0, 40, 40, 0.9, 0, 0, a) for k, a in enumerate((0.92625, 0.5))))
    run = make_run(tmp_path, {"a": (CLASSES, d)}, 2)
    merge_run(run, MergeSettings())
    assert filtered(run)["kept"]["car"] == 2
    content = filtered(run, min_agreement=0.7)
    assert content["kept"]["car"] == 1 and content["counters"]["disagreeing"] == 1
    assert content["images"]["uncertain"] == 1
