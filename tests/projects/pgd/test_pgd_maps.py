"""PGD's maps against hand-computed values and a version with loops."""

import pgd_reference as reference
import pytest
import torch

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.quality import probability_and_iou, quality_score
from kd_d2.projects.pgd import (
    gaussian_weights,
    prediction_guided_maps,
    select_key_locations,
)
from kd_d2.projects.pgd.maps import inside

EXPONENTS = {"cls_exponent": 0.8, "reg_exponent": 0.6}


def predictions(logits, boxes, points, stride=8.0, valid=None, sizes=None):
    num_images, num_locations = logits.shape[:2]
    if valid is None:
        valid = torch.ones(num_images, num_locations, dtype=torch.bool)
    strides = torch.full((num_locations,), stride)
    return DensePredictions(logits, boxes, points, strides, valid, sizes or [(1, num_locations)])


def random_case(seed, num_images=2, objects=(3, 1), grid=(6, 7), classes=3):
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    points = torch.stack((x, y), -1).reshape(-1, 2) * 8.0
    num_locations = len(points)
    logits = torch.randn(num_images, num_locations, classes, generator=g)
    centres = points + torch.randn(num_images, num_locations, 2, generator=g) * 4
    # large enough to overlap all objects: equal qualities of 0 would be ranked by chance
    sizes = 90 + 24 * torch.rand(num_images, num_locations, 2, generator=g)
    decoded = predictions(logits, torch.cat((centres - sizes / 2, centres + sizes / 2), -1), points)
    most = max(objects)
    corner = torch.rand(num_images, most, 2, generator=g) * 30
    boxes = torch.cat((corner, corner + 6 + torch.rand(num_images, most, 2, generator=g) * 24), -1)
    labels = torch.randint(classes, (num_images, most), generator=g)
    for i, n in enumerate(objects):
        boxes[i, n:] = 0
        labels[i, n:] = 0
    return decoded, boxes, labels, objects


def slow(decoded, boxes, labels, objects, k, exponent, transposed):
    fore, back = [], []
    for i, n in enumerate(objects):
        of_image = [x[i].tolist() for x in (decoded.logits, decoded.boxes)]
        points, valid = decoded.points.tolist(), decoded.valid[i].tolist()
        own = boxes[i, :n].tolist()
        fore.append(
            reference.foreground(
                *of_image, points, valid, own, labels[i, :n].tolist(), k, exponent, transposed
            )
        )
        back.append(reference.background(points, valid, own, transposed))
    return torch.tensor(fore), torch.tensor(back)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("seed", range(4))
def test_maps_equal_loops(seed, k, transposed):
    case = random_case(seed, objects=(3, seed % 2))
    if seed == 3:  # an image whose right side is padding
        case[0].valid[1, case[0].points[:, 0] > 30] = False
    maps = prediction_guided_maps(*case[:3], k=k, jitter=False, transposed=transposed, **EXPONENTS)
    for exponent, fore in zip(EXPONENTS.values(), (maps.cls, maps.reg), strict=True):
        expected, back = slow(*case, k, exponent, transposed)
        torch.testing.assert_close(fore, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps.background, back)


def test_maps_of_a_grid_by_hand():
    a = torch.arange(16)
    points = torch.stack((8 * (a % 4), 8 * (a // 4)), 1).float()
    box = torch.tensor([4.0, 2, 22, 30])
    boxes = box + torch.stack((a % 5, a % 3, -(a % 4), -(a % 7)), 1)
    decoded = predictions(torch.linspace(-2, 2, 16).view(1, 16, 1), boxes[None], points)
    args = decoded, box.view(1, 1, 4), torch.zeros(1, 1, dtype=torch.long)
    maps = prediction_guided_maps(*args, k=5, jitter=False, **EXPONENTS)
    expected = torch.zeros(2, 16)
    expected[0, 10], expected[0, 14] = 0.3246525, 0.6872893
    expected[1, 10], expected[1, 13], expected[1, 14] = 0.1353353, 0.7788008, 0.7788008
    torch.testing.assert_close(torch.cat((maps.cls, maps.reg)), expected, rtol=0, atol=1e-5)
    covered = (maps.background[0] == 0).nonzero().flatten().tolist()
    assert covered == [5, 6, 9, 10, 13, 14]
    swapped = prediction_guided_maps(*args, k=5, jitter=False, transposed=True, **EXPONENTS)
    assert swapped.cls[0].nonzero().tolist() == swapped.reg[0].nonzero().tolist() == [[10]]


def test_an_image_without_objects_is_all_background():
    decoded, _, _, _ = random_case(0)
    nobody = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.long)
    decoded.valid[0, :5] = False
    maps = prediction_guided_maps(decoded, *nobody, k=9, **EXPONENTS)
    assert not maps.cls.any() and not maps.reg.any()
    torch.testing.assert_close(maps.background, decoded.valid.float())


def test_padding_the_objects_changes_nothing():
    decoded, boxes, labels, _ = random_case(1, objects=(2, 2))
    more = torch.cat((boxes, torch.zeros(2, 3, 4)), 1), torch.cat((labels, labels[:, :1] * 0), 1)
    few = prediction_guided_maps(decoded, boxes, labels, k=9, jitter=False, **EXPONENTS)
    many = prediction_guided_maps(
        decoded, more[0], torch.cat((more[1], labels * 0), 1), k=9, jitter=False, **EXPONENTS
    )
    for name in ("cls", "reg", "background"):
        assert torch.equal(getattr(few, name), getattr(many, name))


def test_low_bound_cuts_small_weights():
    decoded, boxes, labels, _ = random_case(2)
    free = prediction_guided_maps(decoded, boxes, labels, k=9, jitter=False, **EXPONENTS)
    cut = prediction_guided_maps(
        decoded, boxes, labels, k=9, jitter=False, low_bound=0.4, **EXPONENTS
    )
    assert 0 < cut.cls.count_nonzero() < free.cls.count_nonzero()
    assert torch.equal(cut.cls, free.cls.where(free.cls >= 0.4, 0.0))


def test_a_huge_image_of_zeros_stays_finite():
    decoded, boxes, labels, _ = random_case(0)
    decoded.boxes.zero_()
    maps = prediction_guided_maps(decoded, boxes, labels, k=9, **EXPONENTS)
    assert all(torch.isfinite(x).all() for x in (maps.cls, maps.reg, maps.background))


@pytest.mark.parametrize("k", [9, 30])
def test_an_object_with_few_overlaps_is_filled_up_without_a_look_at_the_class(k):
    decoded, boxes, labels, _ = random_case(5)
    decoded.boxes = torch.cat((decoded.points - 3, decoded.points + 3), 1).expand(2, -1, -1)
    maps = prediction_guided_maps(decoded, boxes, labels, k=k, jitter=False, **EXPONENTS)
    fit = probability_and_iou(decoded.logits, decoded.boxes, boxes, labels)
    for exponent, fore in zip(EXPONENTS.values(), (maps.cls, maps.reg), strict=True):
        quality = quality_score(*fit, exponent)
        assert ((quality > 0).sum(-1) < k).any()  # the others tie, in the order of topk
        key = quality.topk(k, dim=-1).indices
        weights = gaussian_weights(decoded.points[key], torch.ones_like(key).bool(), jitter=False)
        weights = weights * inside(decoded.points[key], boxes[:, :, None])
        expected = torch.zeros(2, decoded.points.shape[0]).scatter_reduce(
            1, key.flatten(1), weights.flatten(1), "amax"
        )
        torch.testing.assert_close(fore, expected)


# ---- the parts


def test_key_locations_are_the_best_of_all_levels():
    quality = torch.tensor([[[0.1, 0.9, 0.5, 0.7], [0.0, 0.0, 0.3, 0.0]]])
    valid = torch.tensor([[True, True, True, False]])
    quality = quality.clamp(min=1e-30).log()
    index, counted = select_key_locations(quality, valid, 2)
    assert index[0, 0].tolist() == [1, 2] and counted.all()
    index, counted = select_key_locations(quality, valid, 9)
    assert index.shape == (1, 2, 4) and counted.sum(-1).tolist() == [[3, 3]]
    assert index[~counted].tolist() == [3, 3]


def test_squared_distances_sum_to_twice_the_points():
    points = torch.rand(4, 30, 2, generator=torch.Generator().manual_seed(0)) * 500
    weights = gaussian_weights(points, torch.ones(4, 30, dtype=torch.bool), jitter=False)
    torch.testing.assert_close(
        -2 * weights.log().sum(-1), torch.full((4,), 60.0), rtol=1e-3, atol=0
    )


def test_points_that_do_not_count_change_nothing():
    points = torch.tensor([[16.0, 16], [24, 16], [16, 24], [24, 32], [500, -300]])
    counted = torch.tensor([True, True, True, True, False])
    expected = torch.tensor([0.4965853, 0.2725318, 0.4965853, 0.2725318, 0])
    torch.testing.assert_close(gaussian_weights(points, counted, jitter=False), expected)


@pytest.mark.parametrize("points", [[[3.0, 4]], [[3.0, 4], [3, 4]], [[0.0, 0], [8, 0], [16, 0]]])
def test_singular_fits_stay_between_0_and_1(points):
    points = torch.tensor(points)
    counted = torch.ones(len(points), dtype=torch.bool)
    for jitter in (False, True):
        weights = gaussian_weights(points, counted, jitter)
        assert torch.isfinite(weights).all() and (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize("k", [2, 3, 7, 9, 30])
@pytest.mark.parametrize("slope", [[1.0, 0], [0, 1], [1, 1], [3, -2]])
def test_points_on_a_line_all_weigh_1(k, slope):
    along = torch.randint(160, (50, k, 1), generator=torch.Generator().manual_seed(k)) * 8
    points = (along * torch.tensor(slope) + 5).float()
    counted = torch.ones(50, k, dtype=torch.bool)
    torch.testing.assert_close(gaussian_weights(points, counted, jitter=False), torch.ones(50, k))
    weights = gaussian_weights(points, counted)
    assert torch.isfinite(weights).all() and (weights >= 0).all() and (weights <= 1).all()


def test_jitter_moves_weights_a_little_and_each_time():
    points = torch.tensor([[16.0, 16], [24, 16], [16, 24], [24, 32]])
    counted = torch.ones(4, dtype=torch.bool)
    still = gaussian_weights(points, counted, jitter=False)
    first, second = (gaussian_weights(points, counted) for _ in range(2))
    assert not torch.equal(first, second)
    assert 0 < (first - still).abs().max() < 0.01


def test_inside_is_strict():
    box = torch.tensor([0.0, 0, 8, 8])
    points = torch.tensor([[0.0, 4], [8, 4], [4, 0], [4, 8], [4, 4], [0.001, 7.999]])
    assert inside(points, box).tolist() == [False, False, False, False, True, True]
