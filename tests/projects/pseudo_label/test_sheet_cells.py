"""What is painted of an image."""

import numpy as np
import pytest
from cases import detections
from PIL import Image

from kd_d2.projects.pseudo_label.run_folder import ImageRecord
from kd_d2.projects.pseudo_label.sheet_cells import SIDE, CellPainter, View, window

NONE = detections([])


def test_window_around_a_box():
    # three times the longer side, around the middle, within the image
    assert window(np.array([[300.0, 200, 400, 250]]), 640, 480) == (200, 75, 500, 375)
    assert window(np.array([[0.0, 0, 10, 10]]), 640, 480) == (0, 0, 120, 120)
    assert window(np.array([[0.0, 0, 600, 100]]), 640, 480) == (0, 0, 640, 480)
    assert window(np.zeros((0, 4)), 64, 48) == (0, 0, 64, 48)


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (100, 50), (90, 90, 90)).save(path)
    return ImageRecord(str(path), "grey.png", 1, "made up")


PAINTER = CellPainter(["cat"], ["big", "other"], np.array([2]))


COLORS = {0: (58, 160, 255), 1: (255, 140, 26)}  # of the first two teachers


def near(pixels, color, tolerance=40):
    return (np.abs(pixels.astype(int) - color) < tolerance).all(-1)


@pytest.mark.parametrize("teacher", [0, 1])
def test_a_box_is_where_it_belongs_in_the_colour_of_its_teacher(record, teacher):
    found = detections([(0, 20, 10, 60, 40, 0.9, 0, teacher)])
    pixels = PAINTER.paint(View(record, found, NONE, NONE))
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    rows, columns = near(pixels, COLORS[teacher]).nonzero()
    assert not near(pixels, COLORS[1 - teacher]).any()
    # 100 x 50 pixels fill the middle half of the square
    scale = SIDE / 100
    assert columns.min() == pytest.approx(20 * scale, abs=3)
    assert columns.max() == pytest.approx(60 * scale, abs=3)
    assert rows.max() == pytest.approx(SIDE / 4 + 40 * scale, abs=3)


def test_dashed_boxes_have_gaps_and_no_words(record):
    found = detections([(0, 20, 10, 60, 40, 0.9, 0)])
    amounts = {
        name: near(PAINTER.paint(View(record, *parts)), COLORS[0]).sum()
        for name, parts in {
            "solid": (found, NONE, NONE),
            "dashed": (NONE, found, NONE),
            "dashed focus": (NONE, found, found),
            "doubted": (NONE, found, NONE, True),
            "nothing": (NONE, NONE, NONE),
        }.items()
    }
    assert amounts["nothing"] == 0 < amounts["dashed"] < 0.7 * amounts["solid"]
    assert amounts["dashed focus"] > amounts["dashed"] + 200  # its words
    assert amounts["doubted"] > amounts["dashed"] + 200


def test_the_focus_is_framed_in_white(record):
    both = detections([(0, 10, 10, 30, 30, 0.9, 0), (0, 60, 10, 80, 30, 0.9, 0, 1)])
    amounts = []
    for focus in (NONE, both[:1]):
        pixels = PAINTER.paint(View(record, both, NONE, focus))
        amounts.append(near(pixels, (255, 255, 255), 12).sum())
    assert amounts[1] > amounts[0] + 300


def test_a_large_image_is_cut_around_the_focus(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (2000, 1000), (90, 90, 90)).save(path)
    record = ImageRecord(str(path), "large.png", 1, "made up")
    near_by = [(0, 1000, 500, 1040, 540, 0.9, 0), (0, 1045, 545, 1060, 560, 0.6, 0)]
    far = [(0, 10, 10, 900, 990, 0.8, 0, 1), (0, 1500, 10, 1900, 990, 0.8, 0, 1)] * 20
    both, one = detections(near_by + far), detections(near_by[:1])
    whole, cut = (PAINTER.paint(View(record, both, NONE, x)) for x in (NONE, one))
    assert near(whole, COLORS[1]).any() and not near(cut, COLORS[1]).any()
    # what is not seen takes nobody's words away
    alone = PAINTER.paint(View(record, detections(near_by), NONE, one))
    assert np.array_equal(cut, alone)
    cut = PAINTER.paint(View(record, one, NONE, one))
    # 40 pixels are a third of what is seen
    columns = near(cut, COLORS[0]).nonzero()[1]
    assert columns.min() == pytest.approx(SIDE / 3, abs=3)
    assert columns.max() == pytest.approx(2 * SIDE / 3, abs=30)  # or the end of the words


def test_an_image_that_cannot_be_read_is_grey(tmp_path):
    path = tmp_path / "broken.png"
    path.write_text("no image")
    for record in (
        ImageRecord(str(path), "broken.png", 1, ""),
        ImageRecord(str(tmp_path / "gone.png"), "gone.png", 2, ""),
    ):
        pixels = PAINTER.paint(View(record, NONE, NONE, NONE))
        assert pixels.shape == (SIDE, SIDE, 3)
        assert (pixels[:100] == (196, 200, 206)).all()
        assert (pixels < 100).any()  # the reason


def test_images_of_one_pixel_and_of_odd_shapes(tmp_path):
    for size in ((1, 1), (3, 900), (900, 3)):
        path = tmp_path / "odd.png"
        Image.new("L", size).save(path)
        view = View(ImageRecord(str(path), "odd.png", 1, ""), NONE, NONE, NONE)
        assert PAINTER.paint(view).shape == (SIDE, SIDE, 3)


def test_of_many_dashed_boxes_the_best_are_shown_and_the_focus(record):
    rows = [(0, 2 + 3 * i, 5, 30 + 2 * i, 45, 0.4 - 0.01 * i, 0) for i in range(30)]
    many, best = detections(rows), detections(rows[:20])
    shown = [PAINTER.paint(View(record, NONE, x, NONE)) for x in (many, best)]
    np.testing.assert_array_equal(*shown)
    last = detections(rows[29:])
    around = [
        PAINTER.paint(View(record, NONE, x, last))
        for x in (many, detections(rows[:20] + rows[29:]))
    ]
    np.testing.assert_array_equal(*around)
