"""Exported labels: numbers by hand, and what plain readers make of them."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from cases import Case, make_run, usual_case
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kd_d2.projects.pseudo_label.coco_files import annotation_lines, read_info, xywh
from kd_d2.projects.pseudo_label.detections import Detections
from kd_d2.projects.pseudo_label.export import ExportError, ExportSettings, export_run
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import FAILED, USED, ShardError

EXTRA = ["score", "weight", "teacher", "votes", "box_agreement", "ignore"]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, usual_case())


def read(run, name="pseudo.json"):
    return json.loads((run.folder / "export" / name).read_text())


def coco_of(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_the_file_by_hand(run):
    paths = export_run(run, ExportSettings(weight_mode="linear"))
    assert [x.name for x in paths] == [
        "pseudo.json", "ignore.json", "dropped.json", "results.json", "provenance.json"
    ]  # fmt: skip
    content = read(run)
    assert content["images"] == [
        {"id": 100, "file_name": "part0/image_0.png", "width": 80, "height": 60,
         "source": "made up"},
        {"id": 101, "file_name": "part1/image_1.png", "width": 80, "height": 60,
         "source": "made up"},
        {"id": 102, "file_name": "part0/image_2.png", "width": 80, "height": 60,
         "source": "made up"},
    ]  # fmt: skip
    assert content["categories"] == [
        {"id": i, "name": n, "supercategory": ""} for i, n in enumerate(["cat", "dog", "bird"], 1)
    ]
    first, second, third = content["annotations"]
    assert first == {
        "id": 1, "image_id": 100, "category_id": 1, "bbox": [10, 10, 30, 40], "area": 1200,
        "iscrowd": 0, "segmentation": [], "score": 0.9, "weight": 0.85, "teacher": "big",
        "votes": 2, "box_agreement": 0.8125, "ignore": 0,
    }  # fmt: skip
    # 5.25 to 20.125 is 5.25 to 20.12, as numpy rounds halves to even; at its threshold 0.6
    assert second["bbox"] == [5.25, 6.5, 14.87, 24.25] and second["area"] == 360.6
    assert (second["weight"], second["teacher"], second["id"]) == (0.25, "other", 2)
    assert "box_agreement" not in second
    assert (third["image_id"], third["weight"]) == (101, 0.625)


def test_ignore_boxes_are_apart(run):
    export_run(run)
    apart = read(run, "ignore.json")
    assert apart["images"] == read(run)["images"]
    assert [(x["id"], x["image_id"], x["category_id"], x["ignore"], x["weight"])
            for x in apart["annotations"]] == [(1, 100, 3, 1, 0), (2, 101, 2, 1, 0)]  # fmt: skip


def test_ignore_boxes_inline_or_not_at_all(run):
    export_run(run)
    export_run(run, ExportSettings(ignore="inline"))
    # the former ignore.json would be taken for a part of this export
    assert not (run.folder / "export" / "ignore.json").exists()
    found = read(run)["annotations"]
    assert sorted(x["id"] for x in found) == [1, 2, 3, 4, 5]
    assert sum(x["ignore"] for x in found) == 2
    export_run(run, ExportSettings(ignore="none"))
    assert sum(x["ignore"] for x in read(run)["annotations"]) == 0


def test_what_the_info_says(run):
    export_run(run)
    info = read(run)["info"]
    assert info == read_info(run.folder / "export" / "pseudo.json")
    pseudo = info["pseudo"]
    assert pseudo["contains_human_labels"] is False
    assert pseudo["images"] == {"count": 5, "list": run.image_list, "sources": {"made up": 5}}
    assert pseudo["filter"]["t_keep"] == {"cat": 0.5, "dog": 0.6, "bird": 0.5}
    assert pseudo["filter"]["counters"]["small"] == 3
    assert pseudo["merge"]["settings"]["mode"] == "nms"
    assert pseudo["teachers"][0] == {
        "name": "big", "classes": ["cat", "dog", "bird"], "run": run.teachers[0].run,
        "floor": 0.05,
    }  # fmt: skip
    side_car = read(run, "provenance.json")
    assert side_car["teachers"][0]["started"] == "10:31"
    names = {"pseudo.json", "ignore.json", "dropped.json", "results.json"}
    assert set(side_car["files"]) == names


def test_equal_runs_give_equal_bytes(tmp_path):
    case = usual_case()
    exports = []
    for i, shard_size in enumerate((2, 2, 5)):
        run = make_run(tmp_path / str(i), dataclasses.replace(case, shard_size=shard_size))
        made = export_run(run, ExportSettings(formats=("coco", "results", "cvat")))
        exports.append({x.name: x.read_bytes() for x in made if x.name != "provenance.json"})
    assert exports[0] == exports[1]
    # of other shards only the line of "info" is different, which has their hashes
    for name in ("pseudo.json", "ignore.json", "dropped.json"):
        for content in exports:
            content[name] = content[name].partition(b"\n")[2]
    assert exports[0] == exports[2] and b'"score": 0.9' in exports[2]["pseudo.json"]


def test_detectron2_reads_it(run):
    ids = {"cat": 17, "dog": 18, "bird": 16}
    export_run(run, category_ids=ids)
    path = run.folder / "export" / "pseudo.json"
    records = load_coco_json(str(path), run.root, "pseudo_test", EXTRA)
    MetadataCatalog.pop("pseudo_test")
    assert [len(x["annotations"]) for x in records] == [2, 1, 0]
    # contiguous numbers go by the id: bird, cat, dog
    assert [x["category_id"] for x in records[0]["annotations"]] == [1, 2]
    box = records[0]["annotations"][0]
    assert (box["score"], box["weight"], box["teacher"], box["votes"]) == (0.9, 1, "big", 2)
    assert {x["category_id"] for x in coco_of(path).anns.values()} == {17, 18}


def test_cocoeval_takes_the_results(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for i in range(6):
        for _ in range(4):
            x, y = generator.uniform(0, 40, 2)
            w, h = generator.uniform(10, 20, 2)
            row = (i, x, y, x + w, y + h, generator.uniform(0.6, 1), generator.integers(3))
            rows.append(row)
    run = make_run(tmp_path, Case(status=[USED] * 6, kept=rows))
    export_run(run)
    truth = coco_of(run.folder / "export" / "pseudo.json")
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(str(run.folder / "export" / "results.json"))
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert len(found.anns) == 24
    assert evaluation.stats[0] == pytest.approx(1)


def test_results_are_all_merged_detections_of_images_that_were_read(run):
    export_run(run)
    found = read(run, "results.json")
    assert [(x["image_id"], x["category_id"], x["score"]) for x in found] == [
        (100, 1, 0.9), (100, 2, 0.6), (100, 3, 0.4), (100, 1, 0.2),
        (101, 1, 0.75), (101, 2, 0.45), (104, 3, 0.48),
    ]  # fmt: skip
    assert set(found[0]) == {"image_id", "category_id", "bbox", "score"}


def test_many_images_make_several_files(tmp_path):
    # five used images in shards of three, two images a file: the cuts lie within shards
    rows = [(i, 1, 1, 20 + i, 30, 0.8, 0) for i in (0, 1, 3, 5, 6)]
    dropped = [(4, 1, 1, 20, 30, 0.4, 0)]  # an image in between, which is not used
    case = Case(
        status=[USED, USED, FAILED, USED, 2, USED, USED],
        kept=rows,
        ignored=rows + dropped,
        shard_size=3,
    )
    run = make_run(tmp_path, case)
    export_run(run)
    whole = read(run)
    paths = export_run(run, ExportSettings(max_images_per_file=2))
    assert [x.name for x in paths if "pseudo" in x.name] == [
        "pseudo_000.json", "pseudo_001.json", "pseudo_002.json"
    ]  # fmt: skip
    parts = [read(run, f"pseudo_{i:03d}.json") for i in range(3)]
    assert [len(x["images"]) for x in parts] == [2, 2, 1]
    for key in ("images", "annotations"):
        assert sum((x[key] for x in parts), []) == whole[key]
    for i, part in enumerate(parts):
        ids = {x["id"] for x in part["images"]}
        assert {x["image_id"] for x in part["annotations"]} == ids
        assert {x["image_id"] for x in read(run, f"ignore_{i:03d}.json")["annotations"]} == ids
    assert not (run.folder / "export" / "pseudo.json").exists()


def test_categories_that_nobody_looked_for(tmp_path):
    case = usual_case()
    case.known_by = {"cat": ["big"], "dog": ["other"], "bird": []}
    run = make_run(tmp_path, case)
    export_run(run)
    assert [x["covered_category_ids"] for x in read(run)["images"]] == [[1, 2]] * 3


def test_a_run_without_any_box(tmp_path):
    run = make_run(tmp_path, Case(status=[USED, FAILED, USED]))
    export_run(run, ExportSettings(formats=("coco", "results", "yolo", "voc", "cvat")))
    assert read(run)["annotations"] == [] and len(read(run)["images"]) == 2
    assert read(run, "results.json") == []
    assert len(coco_of(run.folder / "export" / "pseudo.json").imgs) == 2
    assert (run.folder / "export/yolo/labels/part0/image_0.txt").read_text() == ""


def test_a_run_without_any_used_image(tmp_path):
    run = make_run(tmp_path, Case(status=[FAILED, 2]))
    export_run(run)
    assert read(run)["images"] == [] and read(run, "ignore.json")["annotations"] == []


def test_box_numbers():
    box = np.float32([[-0.001, 0.005, 10.006, 33.333]])
    assert xywh(box).tolist() == [[0, 0, 10.01, 33.33]]
    assert str(xywh(box)[0, 0]) == "0.0"  # not -0
    assert xywh(np.zeros((0, 4))).shape == (0, 4)
    # what is left of the image's edge stays there after rounding
    corners = np.random.default_rng(0).uniform(0, 80, (1000, 2, 2))
    box = np.hstack([corners.min(1), corners.max(1)]).astype(np.float32)
    back = xywh(box)
    assert (np.round(back[:, :2] + back[:, 2:], 2) <= 80).all()
    assert np.abs(back[:, :2] + back[:, 2:] - box[:, 2:]).max() <= 0.00501


def test_names_are_escaped():
    found = Detections.make([0], [[0, 0, 1, 1]], [0.5], [0])
    (line,) = annotation_lines(
        found, np.array([1]), np.array([1]), np.ones(1), ['a "b" %s ü'], 1, False
    )
    assert json.loads(line)["teacher"] == 'a "b" %s ü'


@pytest.mark.parametrize(
    "change, words",
    [
        ({"weight_mode": "half"}, "none, score, linear"),
        ({"ignore": "maybe"}, "separate, inline, none"),
        ({"w_min": 1.5}, "from 0 to 1"),
        ({"max_images_per_file": 0}, "at least 1"),
        ({"formats": ("coco", "csv")}, "coco, results, yolo, voc, cvat"),
        ({"formats": ()}, "coco, results, yolo, voc, cvat"),
    ],
)
def test_wrong_settings(change, words):
    with pytest.raises(ExportError, match=words):
        ExportSettings(**change)


@pytest.mark.parametrize(
    "ids, words",
    [
        ({"cat": 1, "bird": 2}, "for dog"),
        ({"cat": 1, "dog": 1, "bird": 2}, "there twice"),
        ({"cat": 1, "dog": -1, "bird": 2}, "below 0"),
        ({"cat": 1, "dog": "2", "bird": 3}, "whole numbers"),
    ],
)
def test_wrong_category_ids(run, ids, words):
    with pytest.raises(ExportError, match=words):
        export_run(run, category_ids=ids)


def test_a_run_that_is_not_complete(run):
    shard = run.shards[1]
    done = run.filtered / f"{shard.name}.done"
    text = done.read_text()
    done.unlink()
    with pytest.raises(RunError, match="1 of 3 shards"):
        export_run(run)
    done.write_text(text.replace('"run": "', '"run": "x'))
    with pytest.raises(ShardError, match="another run"):
        export_run(run)
    (run.folder / "merge.json").unlink()
    with pytest.raises(RunError, match="run the stage merge first"):
        export_run(run)
    assert not (run.folder / "export").exists()


@pytest.mark.parametrize("number", [2, 4])
def test_a_filter_json_that_does_not_fit_its_shards(run, number):
    path = run.folder / "filter.json"
    path.write_text(path.read_text().replace('"used": 3', f'"used": {number}'))
    with pytest.raises(RunError, match=f"{number} images that are used"):
        export_run(run, ExportSettings(max_images_per_file=2))
    assert not (run.folder / "export" / "pseudo.json").exists()
