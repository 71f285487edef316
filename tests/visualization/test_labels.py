import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kd_d2.visualization.labels import place_labels


@pytest.mark.parametrize("size", [(90, 90), (40, 160)])
def test_words_neither_overlap_nor_leave_the_picture(size):
    axes = Figure(figsize=(2.5, 2.5)).add_axes((0.1, 0.1, 0.8, 0.8))
    axes.imshow(np.zeros((*size, 3)))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [size[1], size[0]], (40, 2, 2))
    boxes = [(*c.min(0), *c.max(0)) for c in corners]
    placed = place_labels(axes, [(box, f"thing {i}", "#3aa0ff") for i, box in enumerate(boxes)])
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    places = [t.get_bbox_patch().get_window_extent(renderer) for t in axes.texts]
    assert 5 < placed == len(places) < 40
    assert not any(a.overlaps(b) for a, b in itertools.combinations(places, 2))
    frame = axes.get_window_extent(renderer).padded(1)
    assert all(frame.containsx(p.x0) and frame.containsx(p.x1) for p in places)
    assert all(frame.containsy(p.y0) and frame.containsy(p.y1) for p in places)


def test_the_first_has_the_choice():
    axes = Figure(figsize=(2, 2)).add_subplot()
    axes.imshow(np.zeros((30, 30, 3)))
    box = (2, 10, 28, 28)
    assert place_labels(axes, [(box, "a", "white"), (box, "b", "black")]) == 2
    first, second = axes.texts
    assert first.get_position() == (2, 10) and first.get_va() == "bottom"
    assert first.get_color() == "black" and second.get_color() == "white"
    assert (second.get_position(), second.get_va()) != ((2, 10), "bottom")
