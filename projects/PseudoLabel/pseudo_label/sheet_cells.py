"""One image of a check sheet as a square picture with its boxes.

Symbols: S side of the square in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data.detection_utils import read_image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from kd_d2.visualization.detections import Boxes2D, class_color, draw
from kd_d2.visualization.labels import place_labels

from .detections import Detections
from .run_folder import ImageRecord

SIDE = 360
_DPI = 100
_LABELS, _MOST_DASHED = 14, 20  # more would hide the image
_CONTEXT, _LEAST_VIEW = 3.0, 120.0  # what is seen around a box: times its longer side, pixels
_PAPER, _GREY = "#f0f1f3", "#c4c8ce"


@dataclass
class View:
    """What a cell shows.

    Attributes:
        solid, dashed: boxes; of the latter the best are shown.
        focus: the one that the cell is about, if any; it is one of the others.
        doubted: whether the cell is about the dashed ones, so that words are at them, and say how
            many teachers found each.
    """

    record: ImageRecord
    solid: Detections
    dashed: Detections
    focus: Detections
    doubted: bool = False


class CellPainter:
    """
    Args:
        categories, teachers: their names.
        known: (C,) how many teachers know each category.
    """

    def __init__(self, categories: Sequence[str], teachers: Sequence[str], known: np.ndarray):
        self._categories, self._teachers, self._known = categories, teachers, known

    def paint(self, view: View) -> np.ndarray:
        """(S, S, 3) uint8; grey with the reason where the image cannot be read."""
        try:
            pixels = read_image(view.record.file_name, format="RGB")
        except Exception as error:  # PIL's plugins raise what they like
            return _message(f"cannot be read:\n{_reason(error)}")
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = window(view.focus.box, width, height)
        scale = SIDE / max(x1 - x0, y1 - y0)
        shape = (max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1))
        picture = Image.fromarray(pixels).resize(shape, Image.BILINEAR, box=(x0, y0, x1, y1))
        dashed = view.dashed[_shown(view.dashed, view.focus)]
        found = Detections.concatenate([view.solid, dashed])
        solid = np.arange(len(found)) < len(view.solid)
        boxes = (found.box - [x0, y0, x0, y0]) * scale
        seen = (boxes[:, :2] < shape).all(1) & (boxes[:, 2:] > 0).all(1)
        return self._draw(view, np.asarray(picture), found[seen], boxes[seen], solid[seen])

    def _draw(
        self,
        view: View,
        picture: np.ndarray,
        found: Detections,
        boxes: np.ndarray,
        solid: np.ndarray,
    ) -> np.ndarray:
        figure = Figure(figsize=(SIDE / _DPI, SIDE / _DPI), dpi=_DPI, facecolor=_PAPER)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        count = len(self._teachers)
        draw(axes, picture, Boxes2D(boxes, found.teacher, found.score), count, solid)
        focus = same_boxes(found, view.focus)
        for x0, y0, x1, y1 in boxes[focus]:
            axes.add_patch(
                Rectangle(
                    (x0 - 3.5, y0 - 3.5),
                    x1 - x0 + 6,
                    y1 - y0 + 6,
                    fill=False,
                    edgecolor="white",
                    linewidth=2.2,
                )
            )
        named = ~solid if view.doubted else solid | focus
        # the focus has the first choice of places, then by score
        order = np.lexsort((-found.score, ~focus))
        order = order[named[order]][:_LABELS]
        height, width = picture.shape[:2]
        shown = np.clip(boxes, 0, [width - 1, height - 1] * 2)
        labels = [
            (
                tuple(shown[i]),
                self._words(found, i, view.doubted),
                class_color(found.teacher[i], count),
            )
            for i in order.tolist()
        ]
        place_labels(axes, labels, size=7)
        return _pixels(figure)

    def _words(self, found: Detections, i: int, votes: bool) -> str:
        category = found.category[i]
        words = f"{self._categories[category]} {found.score[i]:.2f}"
        return words + f" {found.votes[i]}/{self._known[category]}" * votes


def _shown(dashed: Detections, focus: Detections) -> np.ndarray:
    """(n,) bool, the best dashed boxes, and the one that a cell is about."""
    rank = np.argsort(np.argsort(-dashed.score, kind="stable"), kind="stable")
    return (rank < _MOST_DASHED) | same_boxes(dashed, focus)


def same_boxes(found: Detections, one: Detections) -> np.ndarray:
    """(n,) bool, which detections of an image are that one; none if ``one`` is empty."""
    if not len(one):
        return np.zeros(len(found), bool)
    same = (found.box == one.box).all(1) & (found.category == one.category)
    return same & (found.score == one.score)


def window(box: np.ndarray, width: int, height: int) -> tuple[float, float, float, float]:
    """What of an image is shown: all, or what is around one box if that would be too small to see.

    Args:
        box: (0, 4) or (1, 4).

    >>> window(np.zeros((0, 4)), 640, 480)
    (0.0, 0.0, 640.0, 480.0)
    >>> window(np.array([[600.0, 0, 640, 40]]), 640, 480)
    (520.0, 0.0, 640.0, 120.0)
    """
    if not len(box):
        return 0.0, 0.0, float(width), float(height)
    (x0, y0, x1, y1) = np.asarray(box[0], float).tolist()
    side = max(_CONTEXT * max(x1 - x0, y1 - y0), _LEAST_VIEW)

    def cut(low: float, high: float, size: int) -> tuple[float, float]:
        length = min(side, size)
        start = min(max((low + high - length) / 2, 0.0), size - length)
        return start, start + length

    (left, right), (top, bottom) = cut(x0, x1, width), cut(y0, y1, height)
    return left, top, right, bottom


def _message(words: str) -> np.ndarray:
    figure = Figure(figsize=(SIDE / _DPI, SIDE / _DPI), dpi=_DPI, facecolor=_GREY)
    figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=9, wrap=True)
    return _pixels(figure)


def _reason(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
    return text[:120] or type(error).__name__


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
