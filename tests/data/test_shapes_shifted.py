"""The second domain of the built-in data: the same kind of scenes, another look."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image

from kd_d2.data.builtin import register_shapes
from kd_d2.data.shapes import SPLITS, ensure_split, is_labeled, split_folder
from kd_d2.data.shapes_look import PLAIN, SHIFTED, Look, photograph
from kd_d2.data.shapes_render import CLASSES, MIN_VISIBLE, SIDE_RANGE, render_scene

SIZES = dict.fromkeys(SPLITS, 12)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with a few images of all six splits, registered as "both_<split>"."""
    root = tmp_path_factory.mktemp("data")
    register_shapes(root, SIZES, prefix="both")
    yield root
    for split in SPLITS:
        DatasetCatalog.remove(f"both_{split}")
        MetadataCatalog.remove(f"both_{split}")


@pytest.fixture(scope="module")
def scenes():
    """Look -> images (N, 96, 96, 3) and their objects."""
    scenes = {}
    for look in (PLAIN, SHIFTED):
        drawn = [render_scene(np.random.default_rng([5, k]), look=look) for k in range(150)]
        scenes[look] = np.stack([image for image, _ in drawn]), [things for _, things in drawn]
    return scenes


def _pixels(root, split, number):
    folder = ensure_split(root, split, num_images=12, prefix="both")
    return np.asarray(Image.open(folder / "images" / f"{split}_{number:06d}.png"))


# Of the first images: means of red, green and blue in the left and the right half. Single grey
# values may differ between machines, which moves a mean by less than 0.001.
FINGERPRINTS = {
    "train": [
        [22.14, 31.39, 32.87, 20.37, 28.66, 30.16],
        [175.63, 173.16, 157.66, 148.99, 142.66, 127.29],
    ],
    "val": [
        [181.05, 180.33, 224.73, 160.9, 165.49, 211.06],
        [51.84, 51.29, 34.99, 42.39, 47.01, 36.78],
    ],
    "unlabeled": [
        [41.49, 44.13, 34.22, 26.61, 60.62, 17.91],
        [167.46, 134.38, 59.71, 149.51, 111.03, 49.65],
    ],
    "shifted_train": [
        [60.98, 63.11, 67.93, 75.86, 77.46, 76.71],
        [104.21, 85.35, 111.13, 93.11, 85.07, 108.92],
    ],
    "shifted_val": [
        [108.27, 110.76, 85.83, 105.57, 113.37, 85.28],
        [194.67, 153.05, 165.55, 177.26, 146.08, 152.1],
    ],
    "shifted_unlabeled": [
        [226.72, 183.62, 188.67, 189.65, 151.72, 156.35],
        [100.32, 103.75, 84.01, 110.95, 121.34, 98.73],
    ],
}
LABELS_SHA256 = {
    "train": "efc910224e7d5343ce2acf3aa8d9b60cca724304dc6053561b5801a8fc88b02a",
    "val": "82c7436dd56d5152b60e1d2d29712b6afdd42bc14e1b85ef74228bc50e1250e9",
    "unlabeled": "289c9fa341630251e884c6163177cfae032f0d374794ddc5ce43c41fb5015f2d",
    "shifted_train": "5fa77d99345ad61951e28e8537575a1d2538d569c01bfc5edc776f86fbdc0583",
    "shifted_val": "7f48486bdee0b3daf53245fe8b28f13dd0c475a3944b3bf0cd255a9ff9feba9f",
    "shifted_unlabeled": "7a24417aced89b0b7bd44a34c3d101e8645e98b27c61b11b4c4ba0fd8cb2b778",
}


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_and_labels_are_those_of_version_1(root, split):
    for number, expected in enumerate(FINGERPRINTS[split]):
        halves = _pixels(root, split, number).reshape(96, 2, 48, 3).mean((0, 2))
        np.testing.assert_allclose(halves.reshape(-1), expected, atol=0.02)
    coco = (split_folder(root, split, "both") / "annotations.json").read_bytes()
    assert hashlib.sha256(coco).hexdigest() == LABELS_SHA256[split]


def test_the_same_bytes_every_time(root, tmp_path):
    one = ensure_split(root, "shifted_val", num_images=12, prefix="both")
    two = ensure_split(tmp_path, "shifted_val", num_images=12, prefix="both")
    for path in one.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_splits_share_no_scene_and_no_id(root):
    seen, ids = set(), []
    for split in SPLITS:
        coco = json.loads(
            (
                ensure_split(root, split, num_images=12, prefix="both") / "annotations.json"
            ).read_text()
        )
        ids += [image["id"] for image in coco["images"]]
        seen |= {_pixels(root, split, number).tobytes() for number in range(12)}
        assert len({image["file_name"] for image in coco["images"]}) == 12
    assert len(set(ids)) == len(ids) == len(seen) == 72
    # Nor is it the same scene in another look.
    outlines = [
        [tuple(thing["segmentation"][0]) for thing in record["annotations"]]
        for split in ("train", "val", "shifted_train", "shifted_val")
        for record in DatasetCatalog.get(f"both_{split}")
    ]
    flat = [outline for things in outlines for outline in things]
    assert len(flat) > 80 and len(set(flat)) == len(flat)


def test_labels_are_valid(root):
    for split in ("shifted_train", "shifted_val"):
        for record in DatasetCatalog.get(f"both_{split}"):
            assert (record["width"], record["height"]) == (96, 96)
            for thing in record["annotations"]:
                x, y, w, h = thing["bbox"]
                assert x >= 0 and y >= 0 and x + w <= 96.01 and y + h <= 96.01
                assert SIDE_RANGE[0] - 0.02 <= max(w, h) <= SIDE_RANGE[1] + 0.02
                assert 0 <= thing["category_id"] < len(CLASSES)


def test_unlabeled_images_have_no_annotations(root):
    assert not is_labeled("shifted_unlabeled") and is_labeled("shifted_val")
    records = DatasetCatalog.get("both_shifted_unlabeled")
    assert len(records) == 12 and not any("annotations" in record for record in records)
    assert "annotations" not in json.loads(
        (split_folder(root, "shifted_unlabeled", "both") / "annotations.json").read_text()
    )


def test_they_are_registered_like_the_source():
    for split, size in (("train", 2000), ("val", 400), ("unlabeled", 1000)):
        assert SPLITS[f"shifted_{split}"] == SPLITS[split] == size
        source = MetadataCatalog.get(f"shapes_{split}")
        target = MetadataCatalog.get(f"shapes_shifted_{split}")
        assert f"shapes_shifted_{split}" in DatasetCatalog
        for key in ("thing_classes", "evaluator_type", "thing_dataset_id_to_contiguous_id"):
            assert getattr(target, key) == getattr(source, key)
        assert target.json_file != source.json_file and target.generated


def test_coco_evaluates_them(root):
    evaluator = COCOEvaluator("both_shifted_val", tasks=("bbox",), distributed=False)
    records = DatasetCatalog.get("both_shifted_val")
    assert {record["image_id"] for record in records} == set(evaluator._coco_api.imgs)


# ---- what is shifted, and what is not


def test_scenes_are_of_the_same_kind(scenes):
    counts, sides, classes = [], [], []
    for look in (PLAIN, SHIFTED):
        things = [thing for group in scenes[look][1] for thing in group]
        assert all(MIN_VISIBLE <= thing.visibility <= 1 for thing in things)
        counts.append(len(things) / 150)
        sides.append(np.mean([np.log(np.ptp(thing.polygon, axis=0).max()) for thing in things]))
        classes.append(np.bincount([t.category for t in things], minlength=6) / len(things))
    assert abs(counts[0] - counts[1]) < 0.5
    assert abs(sides[0] - sides[1]) < 0.12
    assert np.abs(classes[0] - classes[1]).max() < 0.08


def _statistics(images):
    """Of each image: mean saturation, its darkest twentieth, how its typical pixel stands out."""
    images = images.astype(float)
    high, low, grey = images.max(3), images.min(3), images.mean(3)
    saturation = ((high - low) / np.maximum(high, 1)).mean((1, 2))
    darkest = np.percentile(grey, 5, axis=(1, 2))
    inner = 4 * grey[:, 1:-1, 1:-1]
    around = grey[:, 2:, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 1:-1, 2:] + grey[:, 1:-1, :-2]
    return saturation, darkest, np.median(np.abs(inner - around), axis=(1, 2))


def test_the_look_is_another(scenes):
    plain, shifted = (_statistics(scenes[look][0]) for look in (PLAIN, SHIFTED))
    saturation, darkest, busy = zip(plain, shifted, strict=True)
    assert np.mean(saturation[1]) < 0.75 * np.mean(saturation[0])  # dull colours
    assert np.percentile(darkest[1], 10) > 1.5 * np.percentile(darkest[0], 10)  # haze: no black
    assert np.mean(busy[1]) > 1.5 * np.mean(busy[0])  # ground, rain and noise everywhere
    assert np.percentile(busy[1], 5) > np.median(busy[0])


def test_colour_does_not_tell_the_class(scenes):
    colors = [[] for _ in CLASSES]
    for image, things in zip(*scenes[SHIFTED], strict=True):
        for thing in things:
            colors[thing.category].append(image[thing.visible].mean(0) / 255)
    means = np.array([np.mean(c, axis=0) for c in colors])
    spread = np.std(np.concatenate(colors), axis=0)
    assert (np.abs(means - means.mean(0)) < 0.45 * spread).all()


def test_objects_can_be_told_from_what_surrounds_them(scenes):
    """A person sees them: in most, some channel differs clearly between inside and outside."""
    clear = []
    for image, things in zip(*scenes[SHIFTED], strict=True):
        taken = np.any([thing.mask for thing in things] or [np.zeros((96, 96), bool)], axis=0)
        ground = image[~taken]
        for thing in things:
            inside = image[thing.visible].mean(0)
            clear.append(np.abs(inside - ground.mean(0)).max())
    assert np.mean(np.array(clear) > 15) > 0.9


@pytest.mark.parametrize("name", ["bevel", "relief", "cast", "rain", "haze"])
def test_each_effect_shows_and_is_out_by_default(name):
    assert getattr(PLAIN, name) == (0, 0)
    look = dataclasses.replace(Look(), **{name: getattr(SHIFTED, name)})
    rng = [np.random.default_rng(3) for _ in range(3)]
    plain, again, other = (
        render_scene(r, look=x)[0] for r, x in zip(rng, (PLAIN, Look(), look), strict=True)
    )
    assert (plain == again).all() and (plain != other).any()


def test_haze_and_rain_by_hand():
    """A black scene, without noise: what is seen is the haze or the rain."""
    black = np.zeros((96, 96, 3), np.float32)
    still = dataclasses.replace(PLAIN, blur_share=0.0, noise_share=0.0)
    hazy = dataclasses.replace(still, haze=(0.5, 0.5))
    image = photograph(np.random.default_rng(0), black, hazy)
    assert image.min() == image.max() and 0.25 * 255 - 1 <= image[0, 0, 0] <= 0.45 * 255 + 1
    rainy = dataclasses.replace(still, rain=(0.4, 0.4))
    image = photograph(np.random.default_rng(0), black, rainy)
    assert set(np.unique(image)) == {0, 102}  # 0.4 * 255
    assert 0.02 < (image > 0).mean() < 0.12
