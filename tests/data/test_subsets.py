"""Nested label subsets: the rule, split files, registered pairs and the tool that writes files."""

import hashlib
import json
import random
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

from kd_d2.data.builtin import register_shapes
from kd_d2.data.requirements import check_datasets
from kd_d2.data.subsets import (
    PERCENTAGES,
    SEEDS,
    SubsetError,
    checksum,
    divide,
    hide_labels,
    make_split,
    read_split,
    register_subset,
    subset,
    subset_name,
)

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
IDS = list(range(1, 401))


def records_of(ids):
    return [{"image_id": i, "file_name": f"{i}.png", "annotations": [{"bbox": [i]}]} for i in ids]


@pytest.fixture
def catalog():
    """Takes out of the catalogs, in the end, what begins with "sub_"."""
    yield
    for name in list(DatasetCatalog):
        if name.startswith("sub_"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def split_file(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(make_split("own", IDS, 10, 3)))
    return path


# ---- the rule


@pytest.mark.parametrize("percent", PERCENTAGES)
def test_the_rule_by_a_slow_loop(percent):
    digests = []
    for image in IDS:
        digests.append((hashlib.sha256(b"7:" + str(image).encode()).hexdigest(), image))
    count = {1: 4, 2: 8, 5: 20, 10: 40, 20: 80, 50: 200, 100: 400}[percent]
    expected = sorted(image for _, image in sorted(digests)[:count])
    chosen, rest = divide(IDS, percent, seed=7)
    assert chosen == expected
    assert sorted(chosen + rest) == IDS and len(rest) == 400 - count


def test_subsets_of_a_seed_are_nested_and_those_of_two_seeds_differ():
    for seed in SEEDS:
        chosen = [set(divide(IDS, percent, seed)[0]) for percent in PERCENTAGES]
        assert all(a < b for a, b in zip(chosen[:-1], chosen[1:], strict=True))
    tens = [tuple(divide(IDS, 10, seed)[0]) for seed in range(20)]
    assert len(set(tens)) == 20
    # Each image is in about a tenth of the seeds' subsets.
    often = sum(IDS[0] in divide(IDS, 10, seed)[0] for seed in range(300))
    assert 12 <= often <= 50


def test_the_order_of_the_images_does_not_matter():
    shuffled = IDS[:]
    random.Random(0).shuffle(shuffled)
    assert divide(shuffled, 5, 0) == divide(iter(IDS), 5, 0)
    assert make_split("own", shuffled, 5, 0) == make_split("own", IDS, 5, 0)


def test_counts_are_rounded_and_at_least_one():
    for total, percent, count in [
        (1, 1, 1),
        (49, 1, 1),  # 0.49 -> 0 -> 1
        (151, 1, 2),  # 1.51
        (250, 1, 2),  # 2.5: halves to the even
        (350, 1, 4),  # 3.5
        (3, 50, 2),  # 1.5
        (118_287, 20, 23_657),
        (7, 100, 7),
    ]:
        assert len(divide(range(total), percent, 0)[0]) == count


def test_ids_may_be_texts():
    chosen, rest = divide([f"{i:03d}.jpg" for i in range(50)], 10, 0)
    assert len(chosen) == 5 and sorted(chosen + rest) == [f"{i:03d}.jpg" for i in range(50)]


@pytest.mark.parametrize(
    "ids, percent, seed, words",
    [
        (IDS, 0, 0, "^0 percent cannot be chosen: give a whole number from 1 to 100"),
        (IDS, 101, 0, "^101 percent"),
        (IDS, 0.5, 0, r"^0\.5 percent"),
        (IDS, 10, -1, "seed -1 is negative"),
        ([], 10, 0, "no images to choose from"),
        ([4, 2, 4], 10, 0, "image id 4 occurs twice"),
        ([1, "1"], 10, 0, "neither all whole numbers nor all texts"),
        ([None], 10, 0, "neither all whole numbers nor all texts"),
    ],
)
def test_what_cannot_be_divided_is_refused(ids, percent, seed, words):
    with pytest.raises(SubsetError, match=words):
        divide(ids, percent, seed)


# ---- split files


def test_a_split_file_by_hand():
    assert make_split("own", range(1, 11), 20, 0) == {
        "dataset": "own",
        "percent": 20,
        "seed": 0,
        "num_images": 10,
        "images_sha256": hashlib.sha256(b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10").hexdigest(),
        "num_rest": 8,
        "rest_sha256": hashlib.sha256(b"1\n2\n3\n5\n6\n8\n9\n10").hexdigest(),
        "num_chosen": 2,
        "chosen_sha256": hashlib.sha256(b"4\n7").hexdigest(),
        "image_ids": [4, 7],
    }


def test_a_split_file_gives_both_lists_and_picks_records(split_file):
    shuffled = IDS[::-1]
    assert read_split(split_file, iter(shuffled)) == divide(IDS, 10, 3)
    records = records_of(shuffled)
    chosen = subset(records, split_file)
    assert [x["image_id"] for x in chosen] == divide(IDS, 10, 3)[0][::-1]
    assert all(record in records for record in chosen)


@pytest.mark.parametrize("ids", [IDS[:-1], [*IDS[:-1], 999]], ids=["fewer", "others"])
def test_records_of_another_data_set_are_refused(split_file, ids):
    words = rf"divides the 400 images of own; these {len(ids)} are not the same: load the whole"
    with pytest.raises(SubsetError, match=words) as caught:
        subset(records_of(ids), split_file)
    assert "\n" not in str(caught.value) and str(split_file) in str(caught.value)


def test_records_must_have_ids(split_file):
    with pytest.raises(SubsetError, match="records without an image_id"):
        subset([{"file_name": "a.png"}], split_file)


@pytest.mark.parametrize("key", ["image_ids", "chosen_sha256", "rest_sha256"])
def test_a_changed_split_file_is_refused(split_file, key):
    split = json.loads(split_file.read_text())
    split[key] = divide(IDS, 10, 4)[0] if key == "image_ids" else checksum([1])
    split_file.write_text(json.dumps(split))
    with pytest.raises(SubsetError, match="was changed after it was made"):
        read_split(split_file, IDS)


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "cannot be read .*make_subset.py"),
        ("{", "is no JSON"),
        ("[1]", "is no split file"),
        ('{"image_ids": [1]}', "is no split file"),
    ],
)
def test_what_is_no_split_file_is_refused(split_file, text, words):
    if text is None:
        split_file.unlink()
    else:
        split_file.write_text(text)
    with pytest.raises(SubsetError, match=words):
        read_split(split_file, IDS)


COMMITTED = [(percent, seed) for percent in (5, 10, 20) for seed in (0, 1, 2)]


@pytest.mark.parametrize("percent, seed", COMMITTED)
def test_files_in_the_repository_are_what_the_code_computes(percent, seed):
    path = DATASETS / "subsets" / f"{subset_name('shapes_train', percent, seed)}.json"
    ids = range(1, 2001)  # as kd_d2.data.shapes numbers the images of its first split
    expected = make_split("shapes_train", ids, percent, seed)
    assert path.read_text() == json.dumps(expected) + "\n"
    assert read_split(path, ids) == divide(ids, percent, seed)


# ---- registered pairs


def test_hidden_labels_are_gone_and_the_records_unchanged():
    record = {"image_id": 1, "file_name": "a", "annotations": [], "sem_seg_file_name": "b"}
    record |= {"pan_seg_file_name": "c", "segments_info": []}
    assert hide_labels([record]) == [{"image_id": 1, "file_name": "a"}]
    assert len(record) == 6


def test_builtin_subsets_are_registered_with_metadata():
    for base in ("shapes_train", "coco_2017_train"):
        whole = MetadataCatalog.get(base)
        for percent in (1, 2, 5, 10, 20, 50, 100):
            for seed in range(5):
                for name in (f"{base}_{percent}p_s{seed}", f"{base}_{percent}p_s{seed}_rest"):
                    assert name in DatasetCatalog
                    metadata = MetadataCatalog.get(name)
                    assert metadata.thing_classes == whole.thing_classes
                    assert metadata.evaluator_type == "coco" and metadata.name == name
                    assert metadata.image_root == whole.image_root
                    assert not hasattr(metadata, "json_file")


def test_a_registered_pair_is_labelled_and_unlabelled(catalog, tmp_path):
    register_shapes(tmp_path, {"train": 40}, prefix="sub")
    name = register_subset("sub_train", 25, 1)
    assert name == "sub_train_25p_s1" and not any(tmp_path.iterdir())
    records = {record["image_id"]: record for record in DatasetCatalog.get("sub_train")}
    chosen, rest = divide(records, 25, 1)
    assert DatasetCatalog.get(name) == [records[i] for i in chosen]
    hidden = DatasetCatalog.get(f"{name}_rest")
    assert [record["image_id"] for record in hidden] == rest
    keys = {"file_name", "height", "width", "image_id"}
    assert all(record.keys() == keys for record in hidden)
    assert len(chosen) == 10 and len(rest) == 30


def test_detectron2_trains_on_a_subset(catalog, tmp_path):
    register_shapes(tmp_path, {"train": 40}, prefix="sub")
    name = register_subset("sub_train", 25, 0)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    check_datasets(cfg)
    assert len(get_detection_dataset_dicts(name, filter_empty=False)) == 10


def test_classes_that_are_known_later_are_handed_on(catalog, tmp_path):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in (1, 2)],
        "annotations": [],
        "categories": [{"id": 4, "name": "bolt"}],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_instances("sub_own", {}, str(tmp_path / "own.json"), str(tmp_path))
    name = register_subset("sub_own", 50, 0)
    assert MetadataCatalog.get(name).get("thing_classes") is None
    for part in (name, f"{name}_rest"):
        assert len(DatasetCatalog.get(part)) == 1
        assert MetadataCatalog.get(part).thing_classes == ["bolt"]
        assert not hasattr(MetadataCatalog.get(part), "json_file")


def test_registering_twice_and_of_a_subset(catalog, tmp_path):
    register_shapes(tmp_path, {"train": 20}, prefix="sub")
    name = register_subset("sub_train", 50, 0)
    assert register_subset("sub_train", 50, 0) == name
    inner = register_subset(name, 10, 2)
    assert [x["image_id"] for x in DatasetCatalog.get(inner)] == divide(
        divide(range(1, 21), 50, 0)[0], 10, 2
    )[0]


@pytest.mark.parametrize(
    "base, percent, seed, words",
    [
        ("sub_nothing", 5, 0, "no data set 'sub_nothing'"),
        ("shapes_train", 0, 0, "^0 percent"),
        ("shapes_train", 5, -2, "seed -2"),
    ],
)
def test_what_cannot_be_registered_is_refused(base, percent, seed, words):
    before = set(DatasetCatalog)
    with pytest.raises(SubsetError, match=words):
        register_subset(base, percent, seed)
    assert set(DatasetCatalog) == before


def test_nothing_is_left_of_all(catalog, tmp_path):
    register_shapes(tmp_path, {"train": 5}, prefix="sub")
    name = register_subset("sub_train", 100, 0)
    assert len(DatasetCatalog.get(name)) == 5
    with pytest.raises(SubsetError, match="_rest' has no images, as 100 % are all of sub_train"):
        DatasetCatalog.get(f"{name}_rest")


def test_absent_files_of_the_whole_are_named_once(catalog, tmp_path):
    json_file = tmp_path / "own.json"
    register_coco_instances("sub_own", {}, str(json_file), str(tmp_path))
    name = register_subset("sub_own", 50, 0)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name, f"{name}_rest"), ()
    with pytest.raises(FileNotFoundError) as caught:
        check_datasets(cfg)
    assert str(caught.value).count(f"sub_own needs {json_file}") == 1
    json_file.write_text("{")
    cfg.DATASETS.TEST = (name,)
    with pytest.raises(ValueError, match="^The data set 'sub_own' cannot be read: .*is no JSON"):
        check_datasets(cfg)


def test_the_list_of_known_names_is_not_flooded():
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("qqqqqq",)
    with pytest.raises(ValueError, match="known are .*shapes_train,") as caught:
        check_datasets(cfg)
    assert "shapes_train_5p" not in str(caught.value)
    cfg.DATASETS.TRAIN = ("shapes_train_5p_s9",)
    with pytest.raises(ValueError, match="did you mean shapes_train_5p_s"):
        check_datasets(cfg)


# ---- the tool


@pytest.fixture
def make_subset(monkeypatch, tmp_path, capsys):
    """Runs the tool; returns its exit code and what it prints."""

    def make_subset(*arguments):
        script = str(DATASETS / "make_subset.py")
        monkeypatch.setattr(sys, "argv", [script, "--output", str(tmp_path / "out"), *arguments])
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, (printed.err if code else printed.out).strip()

    return make_subset


def test_the_tool_writes_what_is_registered(catalog, make_subset, tmp_path):
    register_shapes(tmp_path, {"train": 40}, prefix="sub")
    code, text = make_subset(
        "--dataset", "sub_train", "--percent", "5", "50", "--seed", "3", "--folds", "2"
    )
    assert code == 0
    assert text.splitlines()[1] == f"{tmp_path}/out/sub_train_50p_s3.json: 20 of 40 images"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"sub_train_{p}p_s{s}.json" for p in (5, 50) for s in (3, 4)}
    records = DatasetCatalog.get("sub_train")
    register_subset("sub_train", 50, 4)
    from_file = subset(records, tmp_path / "out" / "sub_train_50p_s4.json")
    assert from_file == DatasetCatalog.get("sub_train_50p_s4")


def test_the_tool_reads_a_file_and_repeats_itself(make_subset, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"images": [{"id": i} for i in IDS]}))
    arguments = ("--annotations", str(own), "--percent", "10", "--folds", "1")
    assert make_subset(*arguments)[0] == 0
    path = tmp_path / "out" / "own_10p_s0.json"
    assert json.loads(path.read_text()) == make_split("own", IDS, 10, 0)
    assert make_subset(*arguments)[0] == 0
    path.write_text("precious")
    code, text = make_subset(*arguments)
    assert code == 2 and "is there and says something else: delete it" in text
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--dataset", "no_such"), "no data set 'no_such'"),
        (("--dataset", "shapes_train", "--percent", "0"), "0 percent cannot be chosen"),
        (("--dataset", "shapes_train", "--seed", "-1"), "seed -1 is negative"),
        (("--dataset", "shapes_train", "--folds", "0"), "--folds is 0"),
        (("--annotations", "no_such.json"), "no_such.json"),
        (("--annotations", __file__), "lists no images as COCO's files do"),
    ],
)
def test_the_tool_refuses_before_it_writes(make_subset, tmp_path, arguments, words):
    code, text = make_subset(*arguments)
    assert code == 2 and words in text and text.startswith("Error: ")
    assert not (tmp_path / "out").exists()
