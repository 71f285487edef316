"""The built-in data set on disk and in Detectron2's catalogs; tiny versions of it."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.evaluation import COCOEvaluator
from PIL import Image

import kd_d2.data.shapes as shapes
from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes import SPLITS, ensure_split
from kd_d2.data.shapes_render import CLASSES


def _pixels(folder):
    return {path.name: np.asarray(Image.open(path)) for path in (folder / "images").iterdir()}


def _hidden(folder):
    return [path for path in folder.parent.glob(f".{folder.name}.tmp-*")]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return ensure_split(tmp_path_factory.mktemp("data"), "train", num_images=40)


@pytest.fixture
def catalog():
    """Registers tiny sets under a prefix, and takes them out again."""
    prefixes = []

    def register(root, prefix, **sizes):
        prefixes.append(prefix)
        register_shapes(root, sizes, prefix=prefix)

    yield register
    for name in list(DatasetCatalog):
        if name.startswith(tuple(prefixes)):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_same_bytes_every_time(train, tmp_path):
    again = ensure_split(tmp_path, "train", num_images=40)
    for name in ("annotations.json", "manifest.json"):
        assert (again / name).read_bytes() == (train / name).read_bytes()
    one, two = _pixels(train), _pixels(again)
    assert one.keys() == two.keys() and len(one) == 40
    assert all((one[name] == two[name]).all() for name in one)


def test_an_image_depends_on_its_number_and_split_only(train, tmp_path, monkeypatch):
    more = ensure_split(tmp_path, "train", num_images=120)  # enough for a second process
    one, two = _pixels(train), _pixels(more)
    assert all((one[name] == two[name]).all() for name in one)
    few = json.loads((train / "annotations.json").read_text())["annotations"]
    many = json.loads((more / "annotations.json").read_text())["annotations"]
    assert many[: len(few)] == few
    monkeypatch.setattr(shapes, "_can_fork", lambda: False)
    shutil.rmtree(more)
    again = ensure_split(tmp_path, "train", num_images=120)
    assert json.loads((again / "annotations.json").read_text())["annotations"] == many
    val = _pixels(ensure_split(tmp_path, "val", num_images=2))
    assert (val["val_000000.png"] != one["train_000000.png"]).any()


def test_coco_json_is_consistent(train):
    coco = json.loads((train / "annotations.json").read_text())
    assert [c["name"] for c in coco["categories"]] == list(CLASSES)
    assert [c["id"] for c in coco["categories"]] == list(range(1, len(CLASSES) + 1))
    ids = {image["id"] for image in coco["images"]}
    assert len(ids) == 40
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
    for image in coco["images"]:
        size = Image.open(train / "images" / image["file_name"]).size
        assert size == (image["width"], image["height"])
    misfits = []
    for thing in coco["annotations"]:
        assert thing["image_id"] in ids
        points = np.array(thing["segmentation"][0]).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        np.testing.assert_allclose(thing["bbox"], [*low, *(high - low)], atol=1e-6)
        rle = mask_util.frPyObjects(thing["segmentation"], 96, 96)
        # COCO's rasteriser rounds to pixels, which shows on the outline and at thin tips.
        outline = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
        assert abs(mask_util.area(rle)[0] - thing["area"]) < 0.5 * outline + 2
        x, y, w, h = mask_util.toBbox(rle)[0]
        misfits.append(np.abs(np.array([x, y, x + w, y + h]) - [*low, *high]))
    assert np.max(misfits) < 3 and np.mean(misfits) < 0.6


def test_generation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_coco", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_split(tmp_path, "train", num_images=3)
    folder = shapes.split_folder(tmp_path, "train")
    assert not folder.exists() and not _hidden(folder)
    assert ensure_split(tmp_path, "train", num_images=3) == folder


_FORK = multiprocessing.get_context("fork")


def _start(root, count, num_images, lock="lock"):
    """Processes that generate the same split from the same moment on."""
    barrier = _FORK.Barrier(count)

    def work():
        if lock == "no_lock":
            shapes._lock = lambda path: contextlib.nullcontext(False)
        # a shell that runs the tests in the background has them ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
        barrier.wait()
        ensure_split(root, "train", num_images=num_images)

    processes = [_FORK.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize("lock", ["lock", "no_lock"])
def test_two_processes_at_once_share_one_folder(train, tmp_path, lock):
    for process in _start(tmp_path, 2, 40, lock):
        process.join(60)
        assert process.exitcode == 0
    folder = shapes.split_folder(tmp_path, "train")
    assert (folder / "manifest.json").read_bytes() == (train / "manifest.json").read_bytes()
    assert not _hidden(folder)


def test_a_loser_of_the_race_takes_the_winners_folder(train, tmp_path, monkeypatch):
    folder = shapes.split_folder(tmp_path, "train")
    coco = shapes._coco

    def slower(*args):
        shutil.copytree(train, folder)  # the other process comes first
        return coco(*args)

    monkeypatch.setattr(shapes, "_coco", slower)
    assert ensure_split(tmp_path, "train", num_images=40) == folder
    assert not _hidden(folder)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_generation_leaves_no_half_data_set(tmp_path, how):
    folder = shapes.split_folder(tmp_path, "train")
    (process,) = _start(tmp_path, 1, 1500)
    while not _hidden(folder) or not any((_hidden(folder)[0] / "images").glob("*.png")):
        time.sleep(0.01)
    os.kill(process.pid, how)
    process.join(60)
    assert process.exitcode
    assert not folder.exists()
    if how == signal.SIGINT:
        assert not _hidden(folder)
    assert ensure_split(tmp_path, "train", num_images=3) == folder
    assert not _hidden(folder)  # what was killed hard is cleared away by the next generation


@pytest.mark.parametrize("damage", ["image", "truncated", "labels", "manifest", "size"])
def test_a_damaged_folder_is_refused(train, tmp_path, damage):
    folder = shapes.split_folder(tmp_path, "train")
    shutil.copytree(train, folder)
    image = next((folder / "images").iterdir())
    if damage == "image":
        image.unlink()
    elif damage == "truncated":
        image.write_bytes(image.read_bytes()[:-10])
    elif damage == "labels":
        (folder / "annotations.json").write_text("{}")
    elif damage == "manifest":
        (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="incomplete or was changed .*delete that folder"):
        ensure_split(tmp_path, "train", num_images=41 if damage == "size" else 40)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written.*DETECTRON2_DATASETS"):
        ensure_split(tmp_path / "file", "train", num_images=2)


def test_builtin_sets_are_registered_and_not_generated():
    import kd_d2.data.builtin  # noqa: F401

    for split in SPLITS:
        metadata = MetadataCatalog.get(f"shapes_{split}")
        assert f"shapes_{split}" in DatasetCatalog
        assert metadata.thing_classes == list(CLASSES)
        assert metadata.evaluator_type == "coco"
        assert f"shapes_v{shapes.VERSION}" in metadata.json_file
        assert metadata.image_root


def test_registering_twice_is_harmless(catalog, tmp_path):
    catalog(tmp_path, "twice", train=5)
    catalog(tmp_path, "twice", train=5)
    assert len(DatasetCatalog.get("twice_train")) == 5
    assert not shapes.split_folder(tmp_path, "val", "twice").exists()


def test_unlabeled_images_have_no_annotations(catalog, tmp_path):
    catalog(tmp_path, "bare", unlabeled=5)
    records = DatasetCatalog.get("bare_unlabeled")
    assert len(records) == 5
    assert all("annotations" not in record for record in records)
    assert "annotations" not in json.loads(
        Path(MetadataCatalog.get("bare_unlabeled").json_file).read_text()
    )


def test_the_evaluator_may_come_before_the_data(catalog, tmp_path):
    catalog(tmp_path, "early", val=8)
    evaluator = COCOEvaluator("early_val", tasks=("bbox",), distributed=False)
    evaluator.reset()
    records = DatasetCatalog.get("early_val")
    assert len(records) == 8 == len(evaluator._coco_api.imgs)
    assert {r["image_id"] for r in records} == set(evaluator._coco_api.imgs)


def test_a_later_registration_takes_nothing_from_an_earlier_one(catalog, tmp_path):
    for prefix in ("earlier", "later"):
        catalog(tmp_path, prefix, val=3)
    for prefix in ("earlier", "later"):
        evaluator = COCOEvaluator(f"{prefix}_val", tasks=("bbox",), distributed=False)
        assert len(evaluator._coco_api.imgs) == 3


def test_detectron2_builds_a_batch(catalog, tmp_path):
    catalog(tmp_path, "batch", train=12)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("batch_train",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.MODEL.MASK_ON = True
    batch = next(iter(build_detection_train_loader(cfg)))
    assert len(batch) == 4
    for record in batch:
        assert record["image"].shape == (3, 96, 96)
        instances = record["instances"]
        assert instances.gt_classes.numel() == len(instances)
        if len(instances):
            assert instances.gt_classes.max() < len(CLASSES)
            tight = instances.gt_masks.get_bounding_boxes().tensor
            assert (tight - instances.gt_boxes.tensor).abs().max() < 0.05
