"""What is said when data sets are unknown, absent or do not fit the detector."""

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from kd_d2.data.requirements import check_datasets, check_num_classes


def _cfg(train=(), test=()):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    return cfg


@pytest.fixture
def tiny_coco(tmp_path):
    """A registered COCO-style data set whose files do not exist yet."""
    json_file, image_root = tmp_path / "labels.json", tmp_path / "images"
    register_coco_instances("requirements_coco", {}, str(json_file), str(image_root))
    yield json_file, image_root
    DatasetCatalog.remove("requirements_coco")
    MetadataCatalog.remove("requirements_coco")


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(
        ValueError, match=r"DATASETS.TRAIN names.*'coco_2017_trian'.*coco_2017_train"
    ):
        check_datasets(_cfg(train=("coco_2017_trian",)))
    with pytest.raises(ValueError, match=r"DATASETS.TEST names.*'shape_val'.*shapes_val"):
        check_datasets(_cfg(train=("shapes_train",), test=("shape_val",)))
    with pytest.raises(ValueError, match="known are .*shapes_train"):
        check_datasets(_cfg(train=("qqqqqq",)))
    assert "qqqqqq" not in MetadataCatalog


def test_missing_files_are_named(tiny_coco):
    json_file, image_root = tiny_coco
    cfg = _cfg(train=("requirements_coco",))
    with pytest.raises(FileNotFoundError) as caught:
        check_datasets(cfg)
    text = str(caught.value)
    assert f"requirements_coco needs {json_file} and {image_root}/" in text
    assert f"there is no {json_file} and no {image_root}/" in text
    assert "datasets/README.md" in text and "DETECTRON2_DATASETS" in text and "\n" not in text

    json_file.write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"there is no {image_root}/: put"):
        check_datasets(cfg)
    image_root.mkdir()
    check_datasets(cfg)


def test_all_missing_sets_are_named_at_once(monkeypatch, tmp_path):
    for name in ("coco_2017_train", "coco_2017_val"):
        # as if Detectron2 had been imported with an empty data folder
        monkeypatch.setitem(
            MetadataCatalog.get(name).__dict__, "json_file", str(tmp_path / f"{name}.json")
        )
    with pytest.raises(FileNotFoundError, match="coco_2017_train needs .*coco_2017_val needs"):
        check_datasets(_cfg(train=("coco_2017_train",), test=("coco_2017_val",)))


def test_evaluation_needs_no_training_data(tiny_coco):
    cfg = _cfg(train=("requirements_coco",), test=("shapes_val",))
    check_datasets(cfg, keys=("TEST",))
    with pytest.raises(FileNotFoundError):
        check_datasets(cfg)


def test_generated_sets_are_never_missing():
    check_datasets(_cfg(train=("shapes_train", "shapes_unlabeled"), test=("shapes_val",)))


@pytest.mark.parametrize(
    "arch, key",
    [("RetinaNet", "MODEL.RETINANET"), ("GeneralizedRCNN", "MODEL.ROI_HEADS")],
)
def test_number_of_classes(arch, key):
    cfg = _cfg(train=("shapes_train",), test=("shapes_val",))
    with pytest.raises(
        ValueError, match=rf"'shapes_train' has 6 classes but {key}.NUM_CLASSES is 80"
    ):
        check_num_classes(cfg, arch)
    cfg.merge_from_list([f"{key}.NUM_CLASSES", 6])
    check_num_classes(cfg, arch)
    cfg.DATASETS.TEST = ("coco_2017_val",)
    with pytest.raises(
        ValueError, match=f"'coco_2017_val' has 80 classes but {key}.NUM_CLASSES is 6"
    ):
        check_num_classes(cfg, arch)


def test_classes_that_nobody_knows_are_not_checked(tiny_coco):
    check_num_classes(_cfg(train=("requirements_coco", "never_heard_of")), "RetinaNet")
    assert "never_heard_of" not in MetadataCatalog
    check_num_classes(_cfg(train=("shapes_train",)), "SomebodysDetector")
    check_num_classes(_cfg(train=("shapes_train",)), "FCOS")  # no MODEL.FCOS in this config


@pytest.fixture
def named():
    """Registers data sets with these classes, read or not: (name, classes or None)."""
    names = []

    def register(name, classes):
        DatasetCatalog.register(name, list)
        names.append(name)
        if classes is not None:
            MetadataCatalog.get(name).thing_classes = classes
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "classes, words",
    [
        (["cat", "cow", "dog"], r"'their_val' has the classes in another order \(class 1 is 'cow'"),
        (
            ["cat", "dog", "owl"],
            r"'their_val' has other classes \(class 2 is 'owl' instead of 'cow'",
        ),
    ],
)
@pytest.mark.parametrize("arch", ["RetinaNet", "SomebodysDetector"])
def test_train_and_test_sets_have_one_order(named, arch, classes, words):
    cfg = _cfg((named("my_train", ["cat", "dog", "cow"]),), (named("their_val", classes),))
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    with pytest.raises(ValueError, match=f"{words}.* than 'my_train'.*: give both") as told:
        check_num_classes(cfg, arch)
    assert "\n" not in str(told.value)
    cfg.DATASETS.TEST = ()
    check_num_classes(cfg, arch)
    cfg.DATASETS.TRAIN = ("my_train", "their_val")
    with pytest.raises(ValueError, match=words):
        check_num_classes(cfg, arch)


def test_orders_are_compared_where_they_are_known(named):
    known = named("my_train", ["cat", "dog"]), named("my_val", ("cat", "dog"))
    unread, other = named("unread", None), named("another", ["dog", "cat"])
    for train, test in (
        (known[:1], known[1:]),
        (known[:1], (unread,)),
        ((unread,), (other,)),
        ((unread,), (*known, other)),  # of a training set that nobody knows
        ((), (*known, other)),
    ):
        check_num_classes(_cfg(train, test), "SomebodysDetector")
    with pytest.raises(ValueError, match="'another' has the classes in another order"):
        check_num_classes(_cfg((unread, known[0]), (known[1], other)), "SomebodysDetector")
    # another number is another matter
    check_num_classes(_cfg(known, (named("more", list("abc")),)), "SomebodysDetector")
