"""Test-time augmentation: which views teachers see, and how what they find is united."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from generate_cases import write_image
from tiny_models import tiny_cfg
from torch import nn
from tta_cases import slow_union

from kd_d2.projects.pseudo_label.generate import GenerateSettings
from kd_d2.projects.pseudo_label.inference import Detector
from kd_d2.projects.pseudo_label.reading import ImageReader
from kd_d2.projects.pseudo_label.run_folder import ImageRecord
from kd_d2.projects.pseudo_label.tta import TTA, View, mirror

PLAIN, MIRRORED, LARGE = View(), View(mirrored=True), View(96)
BOTH = (PLAIN, MIRRORED)


def rows(*values):
    return torch.tensor(values).reshape(-1, 6)


# ---- uniting


def test_boxes_of_two_views_by_hand():
    first = rows([0, 0, 10, 10, 0.8, 0], [20, 20, 30, 30, 0.3, 1])
    second = rows(
        [0, 0, 10, 8, 0.9, 0],  # IoU 0.8 with the first one's, and better
        [0, 0, 10, 10, 0.7, 1],  # of another class
        [20, 20, 30, 25, 0.2, 1],  # IoU 0.5, which is not above 0.5
        [20, 20, 30, 26, 0.1, 1],  # IoU 0.6
    )
    tta = TTA((PLAIN, LARGE), nms=0.5, topk=9)
    expected = torch.stack([second[0], second[1], first[1], second[2]])
    assert torch.equal(tta.unite({PLAIN: first, LARGE: second}, 100), expected)
    top = TTA((PLAIN, LARGE), nms=0.5, topk=3)
    assert torch.equal(top.unite({PLAIN: first, LARGE: second}, 100), expected[:3])


def test_mirrored_boxes_are_turned_back():
    found = rows([10, 5, 30, 25, 0.6, 2])
    mirrored = rows([70, 5, 90, 25, 0.9, 2], [10, 5, 30, 25, 0.5, 2])
    united = TTA(BOTH, nms=0.5, topk=9).unite({PLAIN: found, MIRRORED: mirrored}, 100)
    assert united[:, :4].tolist() == [[10, 5, 30, 25], [70, 5, 90, 25]]
    assert united[:, 4].tolist() == pytest.approx([0.9, 0.5])
    assert torch.equal(mirror(mirror(found, 100), 100), found)


@pytest.mark.parametrize("topk", [5, 1000])
@pytest.mark.parametrize("count", [30, 700])  # torchvision has another way for many
def test_union_as_a_slow_loop(count, topk):
    generator = torch.Generator().manual_seed(count)

    def table():
        corners = torch.randint(0, 60, (count, 2), generator=generator).float()
        sides = torch.randint(1, 30, (count, 2), generator=generator)
        scores = torch.rand(count, 1, generator=generator)
        classes = torch.randint(0, 3, (count, 1), generator=generator)
        return torch.cat([corners, corners + sides, scores, classes], 1)

    seen = {PLAIN: table(), MIRRORED: table(), LARGE: table()}
    united = TTA(tuple(seen), nms=0.4, topk=topk).unite(seen, 100)
    turned = mirror(seen[MIRRORED], 100)
    expected = slow_union(torch.cat([seen[PLAIN], turned, seen[LARGE]]), 0.4, topk)
    assert united.tolist() == expected
    assert len(expected) == min(topk, len(expected)) < 3 * count


def test_classes_stay_apart_in_large_images_with_many_classes():
    # IoU 0.5 to a hair above it; beside 1,200 classes times 8,000 pixels float32 has whole pixels
    one, other = [7000, 7000, 7002, 7004, 0.9, 1200], [7000, 7000, 7002, 7002.25, 0.8, 1200]
    tta = TTA((PLAIN, LARGE), nms=0.5, topk=9)
    assert len(tta.unite({PLAIN: rows(one), LARGE: rows(other)}, 8000)) == 1
    other[3] = 7001.75
    assert len(tta.unite({PLAIN: rows(one), LARGE: rows(other)}, 8000)) == 2


def test_a_single_view_is_left_alone_and_empty_ones_are_no_trouble():
    overlapping = rows([0, 0, 9, 9, 0.5, 0], [0, 0, 9, 9, 0.7, 0], [0, 0, np.nan, 9, 0.1, 0])
    assert TTA().unite({PLAIN: overlapping, MIRRORED: rows()}, 10) is overlapping
    both = TTA((PLAIN, LARGE), nms=0.5, topk=9)
    assert both.unite({PLAIN: rows(), LARGE: rows()}, 10).shape == (0, 6)
    # numbers that are none would be above or beside everything
    assert both.unite({PLAIN: overlapping, LARGE: rows()}, 10).tolist() == overlapping[1:2].tolist()


# ---- views


def test_views_of_settings():
    cfg = tiny_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.MODEL.RETINANET.NMS_THRESH_TEST = 64, 0.45

    def views(**settings):
        return TTA.of(cfg, GenerateSettings(**settings)).views

    assert views() == (PLAIN,)
    assert views(tta_flip=True) == BOTH
    assert views(tta_sizes=(48, 64)) == (View(48), PLAIN)
    assert views(tta_sizes=(64, 96), tta_flip=True) == (*BOTH, LARGE, View(96, True))
    tta = TTA.of(cfg, GenerateSettings(topk=7, tta_sizes=(48, 64, 96), tta_flip=True))
    assert (tta.nms, tta.topk, tta.sizes) == (0.45, 7, (48, 96))


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (80, 120, {64: (64, 96), 32: (32, 48), 96: (96, 144)}),
        (50, 200, {64: (32, 128), 32: (16, 64), 96: (48, 192)}),  # the longer side is the limit
    ],
)
def test_sizes_of_views(tmp_path, height, width, sizes):
    cfg = tiny_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    write_image(tmp_path / "a.png", height, width)
    image = ImageRecord(str(tmp_path / "a.png"), "a.png", 1, "test")
    found = ImageReader(cfg, sizes=(32, 96))(image)
    assert (found["height"], found["width"]) == (height, width)
    assert {64: found["image"].shape, **{k: x.shape for k, x in found["views"].items()}} == {
        k: (3, *x) for k, x in sizes.items()
    }
    # from the original image: as a teacher of that size would get it
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 192
    assert torch.equal(found["views"][96], ImageReader(cfg)(image)["image"])
    assert "views" not in ImageReader(cfg)(image)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 0, 64  # images as they are
    assert ImageReader(cfg, sizes=(32,))(image)["views"][32].shape[1:] == sizes[32]


class Marked(nn.Module):
    """Finds, at each size and side that the mark (255) in the image is on, what it is told to."""

    def __init__(self, found):
        super().__init__()
        self.found, self.seen = found, []

    def forward(self, inputs):
        return [{"instances": self._instances(x)} for x in inputs]

    def _instances(self, x):
        self.seen.append((x["image"].shape[1], x["image"][0, 0, 0].item() != 255))
        table = rows(*self.found[self.seen[-1]])
        if table.isinf().any():
            raise AssertionError("Box tensor contains infinite or NaN!")
        return Instances(
            (x["height"], x["width"]),
            pred_boxes=Boxes(table[:, :4]),
            scores=table[:, 4],
            pred_classes=table[:, 5].long(),
        )


def marked(size):
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    image[:, :, 0] = 255
    return image


INPUT = {"image": marked(4), "views": {8: marked(8)}, "height": 60, "width": 100}
FOUND = {
    (4, False): [[20, 10, 60, 50, 0.5, 0]],
    (4, True): [[42, 11, 80, 50, 0.6, 0]],  # turned back: 20 11 58 50, IoU 0.92625 with the other
    (8, False): [[20, 10, 60, 50, 0.7, 0], [0, 0, 9, 9, 0.2, 1]],
    (8, True): [[91, 0, 100, 9, 0.3, 1]],  # turned back: 0 0 9 9
}


def detected(views, flip, inputs=(INPUT,), found=FOUND):
    detector = Marked(found).eval()
    tta = TTA(views, nms=0.5, topk=9)
    tables = Detector(detector, torch.device("cpu"), flip, False, tta)(list(inputs)).tables()
    return tables, detector.seen


def test_a_detector_sees_each_view_and_its_finds_are_united():
    views = (View(8), View(8, True), *BOTH)
    (table,), seen = detected(views, flip=False)
    assert seen == [(8, False), (8, True), (4, False), (4, True)]
    assert table[:, :6].ravel().tolist() == pytest.approx(
        [20, 10, 60, 50, 0.7, 0, 0, 0, 9, 9, 0.3, 1]
    )
    assert np.isnan(table[:, 6]).all()
    assert detected((PLAIN,), flip=False)[1] == [(4, False)]


def test_agreement_of_united_boxes_is_with_the_mirrored_image_of_the_test_size():
    (table,), seen = detected((View(8), View(8, True)), flip=True)
    assert seen == [(8, False), (8, True), (4, True)]
    assert table[:, 4].tolist() == pytest.approx([0.7, 0.3])
    assert table[:, 6].tolist() == pytest.approx([0.92625, 0], abs=1e-5)


def test_the_mirrored_image_is_not_looked_at_twice():
    (table,), seen = detected((*BOTH, View(8)), flip=True)
    assert seen == [(4, False), (4, True), (8, False)]
    assert table[:, 6].tolist() == pytest.approx([0.92625, 0], abs=1e-5)
    (table,), seen = detected(BOTH, flip=True)
    assert seen == [(4, False), (4, True)]
    assert table[0].tolist() == pytest.approx([20, 11, 58, 50, 0.6, 0, 1])  # its own mirror image


def test_an_image_fails_if_one_view_of_it_does():
    bad = {**FOUND, (6, False): [[0, 0, np.inf, 5, 0.5, 0]]}
    other = {**INPUT, "views": {8: marked(6)}}
    tables, seen = detected((PLAIN, View(8)), False, [INPUT, other, INPUT], bad)
    assert [None if t is None else len(t) for t in tables] == [2, None, 2]
    assert seen.count((8, False)) == 3
