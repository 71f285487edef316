"""What is said when a data set of one's own cannot be read or has not the labels it needs."""

import copy
import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from tiny_models import tiny_cfg

from kd_d2.data.reading import read_dataset
from kd_d2.data.requirements import check_datasets, check_num_classes
from kd_d2.engine import DistillationTrainer

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]
RUNS = {"size": [32, 48], "counts": [5, 3, 1528]}
LABEL = {"iscrowd": 0, "bbox": [1, 1, 8, 8], "area": 64, "segmentation": SQUARE}
WHOLE = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 48} for i in (1, 2)],
    "annotations": [LABEL | {"id": i, "image_id": i, "category_id": i} for i in (1, 2)],
    "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
}


@pytest.fixture
def own(tmp_path):
    """Registers a COCO-style data set; its content as a dict or text."""
    names = []

    def own(content, name="own_data"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"{name}.json").write_text(text)
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path))
        names.append(name)
        return name

    yield own
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def function():
    """Registers a data set that is the result of a function."""
    yield lambda load: DatasetCatalog.register("own_function", load)
    DatasetCatalog.remove("own_function")
    MetadataCatalog.pop("own_function", None)


def without(key):
    return {k: v for k, v in WHOLE.items() if k != key}


def changed(key, index=0, **values):
    content = copy.deepcopy(WHOLE)
    content[key][index].update(values)
    return content


def each_label(**values):
    return WHOLE | {"annotations": [x | values for x in WHOLE["annotations"]]}


def no_masks():
    labels = [{k: v for k, v in x.items() if k != "segmentation"} for x in WHOLE["annotations"]]
    return WHOLE | {"annotations": labels}


BROKEN = {
    "cut off": ('{"images": [', r"own_data.json is no JSON \(.*write or fetch it anew"),
    "a list": ([1], "own_data.json holds a list: it must be a dict"),
    "no categories": (without("categories"), "own_data.json lists no categories"),
    "empty categories": (WHOLE | {"categories": []}, "own_data.json lists no categories"),
    "no images": (without("images"), "has no images: .*own_data.json"),
    "category": (changed("annotations", category_id=77), "own_data.json is .*category_id=77"),
    "ids": (changed("annotations", id=2), "own_data.json is .*ids in .* are not unique"),
    "no height": (
        WHOLE | {"images": [{"id": 1, "file_name": "1.png", "width": 48}]},
        "own_data.json is .*there is no 'height'",
    ),
}


def cfg_of(train=(), test=(), arch="RetinaNet", **input_):
    cfg = tiny_cfg(arch)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in input_.items():
        cfg.INPUT[key] = value
    return cfg


@pytest.mark.parametrize("content, words", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named(own, content, words):
    name = own(content)
    for read in (
        lambda: read_dataset(name),
        lambda: check_datasets(cfg_of(test=(name,)), ("TEST",)),  # before any training
        lambda: DistillationTrainer.build_train_loader(cfg_of(train=(name,))),
    ):
        with pytest.raises(ValueError, match=f"The data set 'own_data' .*{words}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_the_broken_one_of_several_is_named(own):
    names = own(WHOLE, "own_whole"), own(without("categories"), "own_broken")
    with pytest.raises(ValueError, match=r"'own_broken' .*own_broken.json lists no categories"):
        DistillationTrainer.build_train_loader(cfg_of(train=names))


def test_errors_of_ones_own_function_are_explained(function):
    def load():
        raise KeyError("boxes")

    function(load)
    with pytest.raises(ValueError, match=r"'own_function' .*KeyError: 'boxes'.* function") as told:
        check_datasets(cfg_of(test=("own_function",)), ("TEST",))
    assert isinstance(told.value.__cause__, KeyError)
    # what Detectron2 itself does not find in records
    DatasetCatalog.remove("own_function")
    function(lambda: [{"file_name": "a.png", "annotations": [LABEL | {"category_id": 0}]}])
    with pytest.raises(ValueError, match=r"TRAIN \('own_function',\) .*there is no 'width'"):
        DistillationTrainer.build_train_loader(cfg_of(train=("own_function",)))


def test_test_sets_are_read_once_and_tell_their_classes(own, monkeypatch):
    name = own(WHOLE)
    cfg = cfg_of(train=("shapes_train",), test=(name,))
    cfg.MODEL.RETINANET.NUM_CLASSES = 6
    check_num_classes(cfg, "RetinaNet")  # nobody knows them yet
    check_datasets(cfg)
    with pytest.raises(ValueError, match="'own_data' has 3 classes but .*NUM_CLASSES is 6"):
        check_num_classes(cfg, "RetinaNet")
    monkeypatch.setattr(
        "kd_d2.data.requirements.read_dataset", lambda name: pytest.fail("read twice")
    )
    check_datasets(cfg)


def test_test_sets_without_labels_are_fine(own):
    check_datasets(cfg_of(test=(own(without("annotations")),), arch="MaskRCNN"), ("TEST",))
    check_datasets(cfg_of(test=("shapes_unlabeled",)), ("TEST",))
    cfg = get_cfg()  # stock, without any key of ours
    cfg.DATASETS.TEST = ("own_data",)
    check_datasets(cfg, ("TEST",))


@pytest.mark.parametrize(
    "content",
    [without("annotations"), WHOLE | {"annotations": []}, each_label(iscrowd=1)],
    ids=["absent", "none", "crowds"],
)
def test_a_training_without_objects_is_refused_unless_it_is_wanted(own, content):
    cfg = cfg_of(train=(own(content),))
    with pytest.raises(ValueError, match=r"\('own_data',\) has no image with an object") as told:
        DistillationTrainer.build_train_loader(cfg)
    assert "DATALOADER.FILTER_EMPTY_ANNOTATIONS False" in str(told.value)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    DistillationTrainer.build_train_loader(cfg)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_training_without_labels_is_refused(own, function, mixed):
    function(lambda: [{"file_name": "a.png", "height": 32, "width": 48, "image_id": 1}])
    names = (own(WHOLE), "own_function") if mixed else ("own_function",)
    with pytest.raises(ValueError, match=r"TRAIN .*has images without labels, e.g. a.png"):
        DistillationTrainer.build_train_loader(cfg_of(train=names))
    # a mapper of one's own may know where they are
    cfg = cfg_of(train=("own_function",))
    DistillationTrainer.build_train_loader(cfg, mapper=lambda record: record)


def test_segmentation_maps_are_labels_too(function):
    record = {"file_name": "a.png", "height": 32, "width": 48, "sem_seg_file_name": "b.png"}
    function(lambda: [record])
    DistillationTrainer.build_train_loader(cfg_of(train=("own_function",)))


def test_masks_that_a_mask_head_needs(own):
    cfg = cfg_of(train=(own(no_masks()),), arch="MaskRCNN")
    with pytest.raises(ValueError, match=r"without a segmentation.*1.png.*MODEL.MASK_ON False"):
        DistillationTrainer.build_train_loader(cfg)
    cfg.MODEL.MASK_ON = False
    DistillationTrainer.build_train_loader(cfg)
    cfg = cfg_of(test=("own_data",), arch="MaskRCNN")
    with pytest.raises(ValueError, match="test set 'own_data' .*without a segmentation"):
        check_datasets(cfg, ("TEST",))
    cfg = cfg_of(train=("own_data",), test=("own_data",), arch="FasterRCNN")
    check_datasets(cfg)
    DistillationTrainer.build_train_loader(cfg)


def test_run_lengths_are_no_polygons(own):
    cfg = cfg_of((own(each_label(segmentation=RUNS)),), arch="MaskRCNN", MASK_FORMAT="polygon")
    with pytest.raises(ValueError, match="run-length.*set INPUT.MASK_FORMAT bitmask"):
        DistillationTrainer.build_train_loader(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    DistillationTrainer.build_train_loader(cfg)
    crowd = each_label(segmentation=RUNS, iscrowd=1)
    crowd["annotations"].append(LABEL | {"id": 3, "image_id": 1, "category_id": 1})
    cfg = cfg_of((own(crowd, "own_crowds"),), arch="MaskRCNN", MASK_FORMAT="polygon")
    DistillationTrainer.build_train_loader(cfg)
