"""Strong augmentation: what it changes, what it leaves alone, and where it is used."""

import pickle
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from kd_d2.config.rules import ConfigError
from kd_d2.data import build_annotated_test_mapper
from kd_d2.data.strong_augmentation import StrongAugmentation
from kd_d2.data.weighted_labels import WeightedLabelMapper
from kd_d2.engine import DistillationTrainer
from kd_d2.engine.seeding import seeded

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
BOXES = [[10, 5, 30, 35], [0, 0, 60, 40]]


def augmented(seed, image=IMAGE, image_format="RGB"):
    with seeded(seed):
        return StrongAugmentation(image_format).get_transform(image).apply_image(image)


def test_an_image_is_a_function_of_the_seed():
    results = [augmented(seed) for seed in range(30)]
    assert all(x.dtype == np.uint8 and x.shape == IMAGE.shape for x in results)
    assert all(np.array_equal(x, augmented(seed)) for seed, x in enumerate(results))
    # by chance some images stay as they are (0.2 * 0.8 * 0.5 * 0.3 * 0.5 * 0.7 = 0.8 %)
    assert len({x.tobytes() for x in results}) >= 28


def test_all_randomness_is_torchs():
    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    StrongAugmentation("RGB").get_transform(IMAGE).apply_image(IMAGE)
    assert random.getstate() == python and np.array_equal(np.random.get_state()[1], numpy)


def test_a_transform_repeats_itself_and_leaves_the_generator_alone():
    transform = StrongAugmentation("BGR").get_transform(IMAGE)
    state, before = torch.get_rng_state(), IMAGE.copy()
    first = transform.apply_image(IMAGE)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(IMAGE, before)
    torch.rand(7)
    assert np.array_equal(transform.apply_image(IMAGE), first)
    coords = np.array([[1.0, 2.0]])
    assert np.array_equal(transform.apply_coords(coords), coords)
    assert np.array_equal(transform.apply_segmentation(IMAGE[..., 0]), IMAGE[..., 0])


def test_workers_can_be_sent_one():
    copy = pickle.loads(pickle.dumps(StrongAugmentation("RGB")))
    with seeded(3):
        assert np.array_equal(copy.get_transform(IMAGE).apply_image(IMAGE), augmented(3))


def test_channels_keep_their_meaning():
    for seed in range(20):
        bgr = augmented(seed, IMAGE[:, :, ::-1], "BGR")
        assert np.array_equal(bgr[:, :, ::-1], augmented(seed))


def test_hue_and_grayscale_see_the_right_channels():
    """Red turns grey as red does, by 0.299, and stays reddest under jitter (36 degrees of hue)."""
    red = np.zeros((9, 9, 3), np.uint8)
    red[..., 2] = 200
    greys, reds = [], []
    for seed in range(200):
        augmentation = StrongAugmentation("BGR")
        # colours only
        augmentation._change.transforms = augmentation._change.transforms[:4]
        with seeded(seed):
            b, g, r = augmentation.get_transform(red).apply_image(red)[4, 4].tolist()
        (greys if b == g == r else reds).append((b, g, r))
    assert 20 < len(greys) < 60  # of 200, 0.2
    assert all(r > max(b, g) for b, g, r in reds)
    # jittered in 4 of 5, else 0.299 * 200
    assert sum(abs(r - 59.8) < 1 for *_, r in greys) >= 3


def test_grey_images_keep_equal_channels_where_nothing_is_erased():
    grey = np.repeat(IMAGE[..., :1], 3, axis=2)
    shares = []
    for seed in range(60):
        out = augmented(seed, grey)
        shares.append((out == out[..., :1]).all(axis=2).mean())
    # nothing is erased with 0.3 * 0.5 * 0.7 = 10 %; at most three times a fifth otherwise
    assert max(shares) == 1 and min(shares) < 0.95 and min(shares) > 0.35


def test_erased_pixels_are_noise_of_all_values():
    white = np.full((200, 300, 3), 255, np.uint8)
    erasing = StrongAugmentation("RGB")._change.transforms[-3]
    for seed in range(20):
        with seeded(seed):
            out = erasing(torch.from_numpy(white).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        changed = (out != 255).any(axis=2)
        if not changed.any():
            continue
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.045 <= box[..., 0].size / white[..., 0].size <= 0.205  # the scale, rounded
        assert 120 < box.mean() < 135 and np.bincount(box.ravel(), minlength=256).min() > 0
        break
    else:
        pytest.fail("nothing was erased in 20 attempts of probability 0.7")


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (1, 30), (3, 2)])
def test_tiny_images(size):
    for seed in range(60):
        assert augmented(seed, IMAGE[: size[0], : size[1]], "BGR").shape == (*size, 3)


def test_other_formats_are_refused():
    for name in ("L", "YUV-BT.601", "CMYK"):
        with pytest.raises(ConfigError, match=f"INPUT.FORMAT is {name}.*STRONG_AUGMENTATION False"):
            StrongAugmentation(name)


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "x.png")
    labels = [{"bbox": x, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0} for x in BOXES]
    record = {"file_name": str(tmp_path / "x.png"), "height": 40, "width": 60, "image_id": 1}
    DatasetCatalog.register("kd_strong", lambda: [{**record, "annotations": labels}])
    MetadataCatalog.get("kd_strong").thing_classes = ["a"]
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("kd_strong",)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 0, 1, 5
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64, 80), 64
    yield cfg
    DatasetCatalog.remove("kd_strong")
    MetadataCatalog.remove("kd_strong")


def samples(cfg, mapper=None, count=6):
    iterator = iter(DistillationTrainer.build_train_loader(cfg, mapper))
    return [next(iterator)[0] for _ in range(count)]


@pytest.mark.parametrize("weighted", [False, True])
def test_training_images_change_and_boxes_stay(cfg, weighted):
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = weighted
    off = samples(cfg)
    for x, y in zip(off, samples(cfg, (WeightedLabelMapper if weighted else DatasetMapper)(cfg))):
        assert torch.equal(x["image"], y["image"])
    cfg.INPUT.STRONG_AUGMENTATION = True
    on = samples(cfg)
    for x, y in zip(off, on):
        assert x["image"].shape == y["image"].shape and y["image"].dtype == torch.uint8
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_classes, y["instances"].gt_classes)
        assert y["instances"].has("gt_weights") == weighted
    assert sum(not torch.equal(x["image"], y["image"]) for x, y in zip(off, on)) >= 5
    assert all(torch.equal(x["image"], y["image"]) for x, y in zip(on, samples(cfg)))


def test_it_comes_after_the_usual_augmentations_of_training_alone(cfg):
    cfg.INPUT.STRONG_AUGMENTATION = cfg.INPUT.CROP.ENABLED = True
    mapper = DistillationTrainer.build_train_loader(cfg).dataset.items._map_func._obj
    kinds = [type(x) for x in mapper.mapper.augmentations.augs]
    assert kinds == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip, StrongAugmentation]
    test = DistillationTrainer.build_test_loader(cfg, "kd_strong")
    (plain,) = next(iter(test))
    record = DatasetCatalog.get("kd_strong")[0]
    assert torch.equal(plain["image"], build_annotated_test_mapper(cfg)(record)["image"])
    assert torch.equal(plain["image"], DatasetMapper(cfg, is_train=False)(record)["image"])
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ConfigError, match="INPUT.FORMAT is L"):
        DistillationTrainer.build_train_loader(cfg)
