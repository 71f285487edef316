"""Facts about single images of the built-in data set."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from kd_d2.data.shapes_look import _contrasting_color, paint
from kd_d2.data.shapes_outlines import (
    CLASS_OUTLINES,
    CLUTTER_OUTLINES,
    coverage,
    polygon_area,
    pose,
)
from kd_d2.data.shapes_render import CLASSES, MIN_VISIBLE, SIDE_RANGE, render_scene


def _coco_mask(polygon, side):
    rles = mask_util.frPyObjects([polygon.reshape(-1).tolist()], side, side)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(np.random.default_rng([7, index])) for index in range(400)]


def test_coverage_of_a_rectangle_by_hand():
    rectangle = np.array([[1.5, 2.0], [3.0, 2.0], [3.0, 3.25], [1.5, 3.25]])
    top, left, patch = coverage(rectangle)
    assert (top, left) == (2, 1)
    np.testing.assert_array_equal(patch, [[0.5, 1.0], [0.125, 0.25]])


def test_coverage_of_a_polygon_with_a_slit_leaves_the_hole_empty():
    outer = np.array([[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]], float)
    inner = np.array([[2, 2], [2, 6], [6, 6], [6, 2], [2, 2]], float)
    polygon = np.concatenate([outer, inner])
    _, _, patch = coverage(polygon)
    expected = np.ones((8, 8))
    expected[2:6, 2:6] = 0
    np.testing.assert_array_equal(patch, expected)
    assert polygon_area(polygon) == 64 - 16
    np.testing.assert_array_equal(_coco_mask(polygon, 8)[3:5, 3:5], False)


def test_pose_gives_the_asked_box():
    polygon = pose(CLASS_OUTLINES["star"](np.random.default_rng(0)), side=30, angle=0.7, squash=0.8,
                   center=(40.0, 50.0))  # fmt: skip
    low, high = polygon.min(0), polygon.max(0)
    assert (high - low).max() == pytest.approx(30, abs=0.02)
    np.testing.assert_allclose((low + high) / 2, [40, 50], atol=0.02)
    np.testing.assert_array_equal(polygon, np.round(polygon, 2))


@pytest.mark.parametrize("name", [*CLASS_OUTLINES, *CLUTTER_OUTLINES])
def test_drawn_pixels_are_those_of_the_coco_polygon(name):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        outline = {**CLASS_OUTLINES, **CLUTTER_OUTLINES}[name](rng)
        polygon = pose(outline, side=60, angle=rng.uniform(0, 6), squash=0.9, center=(48.0, 48.0))
        top, left, alpha = coverage(polygon)
        assert alpha.min() >= 0 and alpha.max() <= 1
        assert float(alpha.sum()) == pytest.approx(polygon_area(polygon), rel=0.02, abs=4)

        # Painting changes pixels inside the polygon's box only, and all that are well covered.
        image = np.full((96, 96, 3), 0.5, np.float32)
        paint(image, top, left, alpha, rng)
        changed = (image != 0.5).any(2)
        (x0, y0), (x1, y1) = polygon.min(0), polygon.max(0)
        rows, columns = np.nonzero(changed)
        assert rows.min() >= np.floor(y0) and rows.max() < np.ceil(y1)
        assert columns.min() >= np.floor(x0) and columns.max() < np.ceil(x1)

        drawn = np.zeros((96, 96), bool)
        drawn[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha >= 0.5
        touched = np.zeros((96, 96), bool)
        touched[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha > 0
        assert not (drawn & ~changed).any() and not (changed & ~touched).any()
        # COCO's own rasteriser rounds to the pixel grid: they may differ along the outline.
        coco = _coco_mask(polygon, 96)
        assert not (coco & ~_dilate(touched)).any()
        if name != "line":  # thinner than the difference
            assert not (drawn & ~_dilate(coco)).any()
            assert (coco & drawn).sum() / (coco | drawn).sum() > 0.85


def _dilate(mask):
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any(
        [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0
    )


def test_scenes_are_a_function_of_the_generator():
    for index in range(5):
        one, things_one = render_scene(np.random.default_rng(index))
        two, things_two = render_scene(np.random.default_rng(index))
        np.testing.assert_array_equal(one, two)
        for a, b in zip(things_one, things_two, strict=True):
            assert a.category == b.category
            np.testing.assert_array_equal(a.polygon, b.polygon)
    other, _ = render_scene(np.random.default_rng(99))
    assert (other != one).any()


def test_images_have_the_asked_side():
    image, _ = render_scene(np.random.default_rng(0), side=96)
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8


def test_objects_lie_inside_and_stay_visible(scenes):
    for _, things in scenes:
        assert len(things) <= 6
        for thing in things:
            assert thing.polygon.min() >= 0 and thing.polygon.max() <= 96
            assert MIN_VISIBLE <= thing.visibility <= 1
            assert not (thing.visible & ~thing.mask).any()
    visibility = np.array([thing.visibility for _, things in scenes for thing in things])
    assert (visibility < 0.9).mean() > 0.1  # occlusion is common


def test_what_is_visible_belongs_to_one_object(scenes):
    for _, things in scenes:
        owners = sum((thing.visible.astype(int) for thing in things), np.zeros((96, 96), int))
        assert owners.max() <= 1


def test_sizes_classes_and_empty_images(scenes):
    counts = [len(things) for _, things in scenes]
    assert 0.01 < np.mean(np.array(counts) == 0) < 0.12
    assert set(counts) == set(range(7))
    sides = np.array([np.ptp(t.polygon, axis=0).max() for _, ts in scenes for t in ts])
    assert sides.min() >= SIDE_RANGE[0] - 0.02 and sides.max() <= SIDE_RANGE[1] + 0.02
    assert sides.max() / sides.min() > 8
    per_class = np.bincount([t.category for _, ts in scenes for t in ts], minlength=len(CLASSES))
    assert len(CLASSES) >= 6
    assert per_class.min() > 0.6 * per_class.mean()


def test_colour_does_not_tell_the_class(scenes):
    colors = [[] for _ in CLASSES]
    for image, things in scenes:
        for thing in things:
            if thing.visible.any():
                colors[thing.category].append(image[thing.visible].mean(0) / 255)
    means = np.array([np.mean(c, axis=0) for c in colors])
    spread = np.std(np.concatenate(colors), axis=0)
    # Each class has its objects in all colours: the classes' means differ far less than objects do.
    assert (np.abs(means - means.mean(0)) < 0.35 * spread).all()
    # The nearest class mean is right hardly more often than chance, one in six.
    hits = [
        (np.linalg.norm(np.array(c)[:, None] - means, axis=2).argmin(1) == k).mean()
        for k, c in enumerate(colors)
    ]
    assert np.mean(hits) < 0.27


def test_objects_differ_from_what_lies_behind():
    rng = np.random.default_rng(0)
    for behind in rng.random((50, 3)):
        assert np.abs(_contrasting_color(rng, behind) - behind).sum() > 0.3
