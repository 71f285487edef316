import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from kd_d2.data.mappers import ImageError
from kd_d2.visualization.naming import known_names
from kd_d2.visualization.sources import TestInputs, annotated_records, image_records, spread


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        Image.new("RGB", (64, 48)).save(tmp_path / name, format="PNG")
    return tmp_path


def annotations(folder, **changes):
    categories = ((7, "dog"), (3, "cat"))
    coco = {
        "images": [{"id": 5, "file_name": "b.png", "width": 64, "height": 48}],
        "categories": [{"id": i, "name": n} for i, n in categories],
        "annotations": [
            {"id": k, "image_id": 5, "category_id": i, "bbox": [1, 2, 30, 20], "area": 600}
            | {"iscrowd": 0}
            for k, (i, _) in enumerate(categories, 1)
        ],
    }
    file = folder / "labels.json"
    file.write_text(json.dumps({k: v for k, v in {**coco, **changes}.items() if v is not None}))
    return str(file)


def test_spread_takes_both_ends():
    assert spread(list(range(10)), 3) == [0, 4, 9]
    assert spread(list(range(2)), 5) == [0, 1]
    assert spread(list(range(5)), 1) == [0]


def test_folders_give_their_images_and_files_themselves(folder):
    files = [r["file_name"] for r in image_records([str(folder / "notes.txt"), str(folder)])]
    assert files == [str(folder / n) for n in ("notes.txt", "a.JPG", "b.png")]
    assert not any("annotations" in r for r in image_records([str(folder)]))
    with pytest.raises(FileNotFoundError, match="There is no image or folder .*none"):
        image_records([str(folder / "none")])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        image_records([str(folder / "empty")])


def test_categories_are_matched_by_name_or_else_by_order(folder):
    file = annotations(folder)

    def classes(*args):
        (record,) = annotated_records(file, str(folder), *args)
        assert record["file_name"] == str(folder / "b.png")
        return [x["category_id"] for x in record["annotations"]]

    assert classes(["bird", "cat", "dog"], 3) == [2, 1]
    assert classes(None, 3) == [1, 0]
    with pytest.raises(ValueError, match="classes that the model does not know .dog.; it knows"):
        classes(["bird", "cat"], 2)
    with pytest.raises(ValueError, match="has 2 classes, and the model 1"):
        classes(None, 1)


def test_what_is_no_annotation_file_is_refused(folder):
    for changes in ({"categories": None}, {"annotations": None}, {"images": None}, {"images": []}):
        file = annotations(folder, **changes)
        with pytest.raises(ValueError, match="labels.json is no COCO annotation file"):
            annotated_records(file, str(folder), None, 3)
    (folder / "labels.json").write_text("{")
    with pytest.raises(ValueError, match="labels.json is no COCO annotation file"):
        annotated_records(str(folder / "labels.json"), str(folder), None, 3)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        annotated_records(str(folder / "none.json"), str(folder), None, 3)
    with pytest.raises(FileNotFoundError, match="needs the folder of the images"):
        annotated_records(annotations(folder), str(folder / "b.png"), None, 3)


def test_inputs_keep_the_labels_that_there_are(folder, tiny_cfg):
    inputs = TestInputs(tiny_cfg())
    (plain, _), (labelled,) = (
        image_records([str(folder)]),
        annotated_records(annotations(folder), str(folder), None, 3),
    )
    assert "instances" not in inputs(plain)
    assert len(inputs(labelled)["instances"]) == 2
    (folder / "bad.png").write_text("no image")
    with pytest.raises(ImageError, match="bad.png cannot be read"):
        inputs({"file_name": str(folder / "bad.png")})


def test_names_come_from_a_data_set_with_as_many_classes(tiny_cfg):
    cfg = tiny_cfg()
    assert known_names(cfg, 3) is None
    cfg.DATASETS.TEST = ("no_such_set", "pseudo_labels:/nowhere")
    cfg.DATASETS.TRAIN = ("kd_names_late",)
    DatasetCatalog.register(
        "kd_names_late",
        lambda: MetadataCatalog.get("kd_names_late").set(thing_classes=["a", "b", "c"]) and [],
    )
    try:
        assert known_names(cfg, 2) is None
        assert known_names(cfg, 3) == ["a", "b", "c"]
    finally:
        DatasetCatalog.remove("kd_names_late")
        MetadataCatalog.remove("kd_names_late")
