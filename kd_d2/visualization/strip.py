"""An observation as one picture: large tiles for the image, a column of small ones for each level.

All measures are in inches; a tile is a square that its content is fitted into.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kd_d2.visualization.attention import draw_attention
from kd_d2.visualization.detections import WRONG, Boxes2D, class_color, draw, is_right
from kd_d2.visualization.labels import place_labels
from kd_d2.visualization.level_features import FeatureTile
from kd_d2.visualization.level_matches import draw_level_matches
from kd_d2.visualization.naming import ClassNames
from kd_d2.visualization.observation import Observation
from kd_d2.visualization.positives import draw_positives

DPI = 110
_LARGE, _GAP, _EDGE = 2.7, 0.1, 0.08
_HEAD, _TITLE, _FOOT = 0.24, 0.19, 0.24
_CAPTION = 0.15  # below a small tile
_SIDE_TITLE = 0.2  # left of the small tiles
_MATRIX_NAMES = 0.85  # left of and below the attention matrix
_MOST_KEYS = 10  # classes in the legend


@dataclass
class Look:
    """What is drawn how.

    Attributes:
        names: class names of student and teacher.
        level: whose attention is shown; None: the mean of all levels.
    """

    names: ClassNames
    level: str | None = None


def draw_strip(shown: Observation, look: Look) -> np.ndarray:
    """Draws one image's strip.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: if ``look.level`` is a level without attention.
    """
    return _Strip(shown, look).render()


class _Strip:
    """Puts tiles from left to right."""

    def __init__(self, shown: Observation, look: Look):
        self.shown, self.look = shown, look
        most = max((len(tiles) for tiles in shown.tiles.values()), default=1)
        # Feature tiles of one column are as high as a large tile together.
        self.small = min(_LARGE / most - _CAPTION, 1.2)
        self.height = _HEAD + _TITLE + _LARGE + _CAPTION + _FOOT
        self.count = len(look.names)
        self.x = _EDGE
        self.figure = Figure(dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.figure.set_size_inches(self._width(), self.height)

    def render(self) -> np.ndarray:
        shown = self.shown
        if shown.truth is not None:
            self._boxes("ground truth", shown.truth, self._numbers(shown.truth))
        else:
            self._boxes("image (no labels)", _nothing(), [])
        self._boxes("student's detections", shown.student, self._scores(shown.student))
        if shown.teacher is not None:
            self._boxes(f"{shown.role}'s detections", shown.teacher, self._scores(shown.teacher))
        for choice in shown.positives:
            draw_positives(self._large(choice.title), shown.image, shown.truth, choice, self.count)
        if shown.relations is not None:
            self._attention()
        if shown.matches is not None:
            self._matches()
        self._levels()
        self._texts()
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _width(self) -> float:
        shown = self.shown
        large = 2 + (shown.teacher is not None) + len(shown.positives)
        width = 2 * _EDGE + large * (_LARGE + _GAP)
        matrices = (shown.relations is not None) + (shown.matches is not None)
        width += matrices * (_LARGE + _MATRIX_NAMES * 0.5 + _GAP)
        if shown.tiles:
            width += _SIDE_TITLE + len(shown.tiles) * (self.small + _GAP)
        return width

    def _axes(self, x: float, top: float, width: float, height: float) -> Axes:
        """A place in inches from the left and from the top."""
        w, h = self.figure.get_size_inches()
        return self.figure.add_axes((x / w, 1 - (top + height) / h, width / w, height / h))

    def _boxes(self, title: str, found: Boxes2D, labels: list[str]) -> None:
        axes = self._large(title)
        truth = self.shown.truth
        right = None
        if truth is not None and found is not truth:
            right = is_right(found, truth)
        draw(axes, self.shown.image, found, self.count, right)
        colors = [class_color(c, self.count) for c in found.classes]
        place_labels(axes, list(zip(map(tuple, found.boxes), labels, colors, strict=True)))

    def _large(self, title: str) -> Axes:
        """The next place for the whole image."""
        axes = self._axes(self.x, _HEAD + _TITLE, _LARGE, _LARGE)
        axes.set_title(title, fontsize=8, pad=3)
        self.x += _LARGE + _GAP
        return axes

    def _numbers(self, truth: Boxes2D) -> list[str]:
        return [str(i + 1) for i in range(len(truth.boxes))]

    def _scores(self, found: Boxes2D) -> list[str]:
        return [
            f"{self.look.names[c]} {100 * s:.0f}"
            for c, s in zip(found.classes, found.scores, strict=True)
        ]

    def _matrix(self, title: str, below: float) -> Axes:
        """A place with names at its left, and ``below`` inches for names below it."""
        side = _MATRIX_NAMES
        height = _LARGE + _CAPTION - below
        axes = self._axes(self.x + side, _HEAD + _TITLE, _LARGE - 0.5 * side, height)
        axes.set_title(title, fontsize=8, pad=3)
        self.x += _LARGE + 0.5 * side + _GAP
        return axes

    def _matches(self) -> None:
        found = self.shown.truth or self.shown.student
        axes = self._matrix("matching levels", 0.35)
        if self.shown.matches.objects:
            names = [self.look.names[c] for c in found.classes]
            draw_level_matches(axes, self.shown.matches, names)
        else:
            _write_no_objects(axes)

    def _attention(self) -> None:
        truth = self.shown.truth
        level = "mean of levels" if self.look.level is None else self.look.level.upper()
        axes = self._matrix(f"attention, {level}", _MATRIX_NAMES)
        if len(truth.boxes):
            sizes = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(1)
            names = [self.look.names[c] for c in truth.classes]
            draw_attention(axes, self.shown.relations, names, sizes, self.look.level)
        else:
            _write_no_objects(axes)

    def _levels(self) -> None:
        columns = self.shown.tiles
        if not columns:
            return
        self.x += _SIDE_TITLE
        tallest = max(columns.values(), key=len)
        for row, tile in enumerate(tallest):
            middle = self._top(row) + self.small / 2
            self._text(self.x - 0.09, middle, tile.title, 7, ha="center", va="center", rotation=90)
        rows = {tile.title: row for row, tile in enumerate(tallest)}
        for name, tiles in columns.items():
            for tile in tiles:
                self._tile(tile, name if tile is tiles[0] else "", self._top(rows[tile.title]))
            self.x += self.small + _GAP

    def _top(self, row: int) -> float:
        return _HEAD + _TITLE + row * (self.small + _CAPTION)

    def _tile(self, tile: FeatureTile, title: str, top: float) -> None:
        axes = self._axes(self.x, top, self.small, self.small)
        axes.imshow(tile.pixels, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        if title:
            axes.set_title(title.upper(), fontsize=8, pad=3)
        self._text(
            self.x + self.small / 2,
            top + self.small + 0.025,
            tile.caption,
            6.5,
            ha="center",
            va="top",
            color="0.25",
        )

    def _text(self, x: float, top: float, words: str, size: float, **options) -> None:
        w, h = self.figure.get_size_inches()
        self.figure.text(x / w, 1 - top / h, words, fontsize=size, **options)

    def _texts(self) -> None:
        """The file's name above, the meaning of colours and lines below."""
        self._text(_EDGE, 0.04, self.shown.name, 8, ha="left", va="top", weight="bold")
        found = [self.shown.truth, self.shown.student, self.shown.teacher]
        classes = sorted({int(c) for x in found if x is not None for c in x.classes})
        keys = []
        if len(classes) <= _MOST_KEYS:
            keys = [
                Line2D([], [], color=class_color(c, self.count), lw=3, label=self.look.names[c])
                for c in classes
            ]
        if self.shown.truth is not None:
            keys.append(Line2D([], [], color="0.3", lw=1.5, label="right"))
            keys.append(Line2D([], [], color="0.3", lw=1.5, ls=WRONG, label="wrong or double"))
        w, h = self.figure.get_size_inches()
        if any(tile.caption for tiles in self.shown.tiles.values() for tile in tiles):
            words = "% of variance that the colours show"
            self._text(w - _EDGE, h - 0.03, words, 6.5, ha="right", va="bottom", color="0.25")
        if keys:
            self.figure.legend(
                handles=keys,
                loc="lower left",
                bbox_to_anchor=(_EDGE / w, 0.02 / h),
                ncols=len(keys),
                fontsize=7,
                frameon=False,
                borderaxespad=0,
                borderpad=0,
                handlelength=1.6,
                columnspacing=1.2,
            )


def _write_no_objects(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(*(0.5, 0.5, "no objects"), ha="center", fontsize=8, transform=axes.transAxes)


def _nothing() -> Boxes2D:
    return Boxes2D(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros(0))


def stack_strips(strips: list[np.ndarray]) -> np.ndarray:
    """Strips below each other on white, from (H_i, W_i, 3) to (sum H_i, max W_i, 3)."""
    width = max(strip.shape[1] for strip in strips)
    rows = itertools.chain.from_iterable(
        (np.full((2, width, 3), 200, np.uint8), _widen(strip, width)) for strip in strips
    )
    return np.concatenate(list(rows)[1:])


def _widen(strip: np.ndarray, width: int) -> np.ndarray:
    missing = ((0, 0), (0, width - strip.shape[1]), (0, 0))
    return np.pad(strip, missing, constant_values=255)
