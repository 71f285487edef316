"""COCO's unlabelled images, from a list of three."""

import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_d2.data.coco_unlabeled import register_coco_unlabeled
from kd_d2.data.reading import read_dataset
from kd_d2.data.requirements import check_datasets
from kd_d2.engine import DistillationTrainer
from kd_d2.projects.pseudo_label.sources import from_names

IMAGES = [
    {"id": i, "file_name": f"{i:012}.jpg", "height": 30 + i, "width": 50, "license": 1}
    for i in (7, 3, 5)
]
WHOLE = {"info": {}, "licenses": [], "images": IMAGES}


@pytest.fixture
def name(tmp_path):
    register_coco_unlabeled(tmp_path, "three_unlabeled")
    yield "three_unlabeled"
    DatasetCatalog.remove("three_unlabeled")
    MetadataCatalog.remove("three_unlabeled")


@pytest.fixture
def write(name, tmp_path):
    def write(content):
        folder = tmp_path / "coco" / "annotations"
        folder.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "image_info_unlabeled2017.json").write_text(text)
        (tmp_path / "coco" / "unlabeled2017").mkdir(exist_ok=True)

    return write


def cfg_of(name):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    return cfg


def test_it_is_registered_with_cocos_classes(name):
    train = MetadataCatalog.get("coco_2017_train")
    for each in ("coco_2017_unlabeled", name):
        assert each in DatasetCatalog
        metadata = MetadataCatalog.get(each)
        for key in ("thing_classes", "thing_dataset_id_to_contiguous_id", "thing_colors"):
            assert metadata.get(key) == train.get(key)
    assert len(train.thing_classes) == 80
    unlabeled = MetadataCatalog.get("coco_2017_unlabeled")
    folder = train.image_root.removesuffix("train2017")
    assert unlabeled.image_root == f"{folder}unlabeled2017"
    assert unlabeled.json_file == f"{folder}annotations/image_info_unlabeled2017.json"
    load = DatasetCatalog["coco_2017_unlabeled"]
    register_coco_unlabeled("elsewhere")
    assert DatasetCatalog["coco_2017_unlabeled"] is load


@pytest.mark.parametrize("more", [{}, {"annotations": []}], ids=["bare", "no annotations"])
def test_records_have_no_labels(name, write, tmp_path, more):
    write(WHOLE | more)
    folder = tmp_path / "coco" / "unlabeled2017"
    assert read_dataset(name) == [
        {"file_name": f"{folder}/{i:012}.jpg", "image_id": i, "height": 30 + i, "width": 50}
        for i in (3, 5, 7)
    ]
    assert len(MetadataCatalog.get(name).thing_classes) == 80  # reading leaves them
    check_datasets(cfg_of(name))


def test_missing_files_are_named(name, write, tmp_path):
    with pytest.raises(FileNotFoundError, match="unlabeled2017.json and no .*unlabeled2017/: put"):
        check_datasets(cfg_of(name))
    write(WHOLE)
    (tmp_path / "coco" / "unlabeled2017").rmdir()
    with pytest.raises(FileNotFoundError, match="three_unlabeled needs .* no .*unlabeled2017/: "):
        check_datasets(cfg_of(name))


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"images": [', r"unlabeled2017.json is no JSON \(.*fetch it anew"),
        ({"images": []}, "has no images: .*unlabeled2017.json"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}]}, "as COCO's .*there is no 'height'"),
    ],
    ids=["cut off", "no images", "no height"],
)
def test_a_broken_list_is_named(name, write, content, words):
    write(content)
    with pytest.raises(ValueError, match=f"'three_unlabeled' .*{words}") as told:
        read_dataset(name)
    assert "categories" not in str(told.value)


def test_the_tool_takes_it_by_name(name, write, tmp_path):
    with pytest.raises(ValueError, match="'three_unlabeled' cannot be read.*DETECTRON2_DATASETS"):
        from_names([name])
    write(WHOLE)
    for image in IMAGES:
        (tmp_path / "coco" / "unlabeled2017" / image["file_name"]).touch()
    root, images = from_names([name])
    assert root == str(tmp_path / "coco" / "unlabeled2017")
    assert [(x.name, x.id) for x in images] == [(f"{i:012}.jpg", i) for i in (3, 5, 7)]


def test_nobody_trains_on_it(name, write, tiny_cfg):
    write(WHOLE)
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(ValueError, match="has images without labels, e.g. .*000003.jpg"):
        DistillationTrainer.build_train_loader(cfg)
