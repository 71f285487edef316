"""Outlines of the built-in data set: unit polygons, their pose, and the pixels they cover.

An outline is a float64 array (K, 2) of x, y around the origin; it is closed implicitly.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["CLASS_OUTLINES", "CLUTTER_OUTLINES", "coverage", "polygon_area", "pose"]

_ROUND = 36  # vertices of a full circle: a 90 px circle then deviates by less than 0.2 px


def _arc(start: float, stop: float, num: int, radius: float = 1.0) -> np.ndarray:
    angle = np.linspace(start, stop, num)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _regular(num: int) -> np.ndarray:
    return _arc(0.0, 2 * np.pi, num + 1)[:-1]


def _circle(rng: np.random.Generator) -> np.ndarray:
    return _regular(_ROUND)


def _ring(rng: np.random.Generator) -> np.ndarray:
    # COCO polygons cannot have holes, so the outline walks around, cuts inwards along a slit of
    # width zero, walks back around the hole and returns along the same slit.
    outer = _arc(0.0, 2 * np.pi, _ROUND + 1)
    outer[-1] = outer[0]
    return np.concatenate([outer, outer[::-1] * rng.uniform(0.5, 0.62)])


def _square(rng: np.random.Generator) -> np.ndarray:
    return _regular(4)


def _triangle(rng: np.random.Generator) -> np.ndarray:
    return _regular(3)


def _star(rng: np.random.Generator) -> np.ndarray:
    points = _regular(10)
    points[1::2] *= rng.uniform(0.38, 0.46)
    return points


def _cross(rng: np.random.Generator) -> np.ndarray:
    a = rng.uniform(0.26, 0.36)
    quarter = np.array([[1.0, -a], [1.0, a], [a, a]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])  # row vectors turned by 90 degrees
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _half_disc(rng: np.random.Generator) -> np.ndarray:
    return _arc(0.0, np.pi, _ROUND // 2)


def _crescent(rng: np.random.Generator) -> np.ndarray:
    outer = _half_disc(rng)
    return np.concatenate([outer, outer[-2:0:-1] * [1.0, rng.uniform(0.3, 0.6)]])


def _hexagon(rng: np.random.Generator) -> np.ndarray:
    return _regular(6)


def _bar(rng: np.random.Generator) -> np.ndarray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1.0, rng.uniform(0.15, 0.3)]


def _line(rng: np.random.Generator) -> np.ndarray:
    bend = rng.uniform(-0.5, 0.5)
    spine = np.array([[-1.0, 0.0], [-0.33, bend], [0.33, -bend], [1.0, 0.0]])
    half = np.array([0.0, rng.uniform(0.02, 0.05)])
    return np.concatenate([spine - half, (spine + half)[::-1]])


def _blob(rng: np.random.Generator) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 29)[:-1]
    wave = sum(
        rng.uniform(0.1, 0.3) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3)
    )
    return _regular(28) * (1.0 + wave)[:, None]


_LETTERS = (  # drawn on a 3 x 5 grid, closed
    [(0, 0), (1, 0), (1, 4), (3, 4), (3, 5), (0, 5)],  # L
    [(0, 0), (3, 0), (3, 1), (2, 1), (2, 5), (1, 5), (1, 1), (0, 1)],  # T
    [(0, 0), (3, 0), (3, 1), (1.2, 4), (3, 4), (3, 5), (0, 5), (0, 4), (1.8, 1), (0, 1)],  # Z
    [(0, 0), (1, 0), (1, 4), (2, 4), (2, 0), (3, 0), (3, 5), (0, 5)],  # U
    [(0, 0), (3, 0), (3, 1), (1, 1), (1, 2), (2.5, 2), (2.5, 3), (1, 3), (1, 5), (0, 5)],  # F
)


def _letter(rng: np.random.Generator) -> np.ndarray:
    return np.array(_LETTERS[rng.integers(len(_LETTERS))], dtype=float) - [1.5, 2.5]


Outline = Callable[[np.random.Generator], np.ndarray]

CLASS_OUTLINES: dict[str, Outline] = {
    "circle": _circle,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
"""What is labelled, in the order of the class ids."""

CLUTTER_OUTLINES: dict[str, Outline] = {
    "half_disc": _half_disc,
    "crescent": _crescent,
    "hexagon": _hexagon,
    "bar": _bar,
    "line": _line,
    "blob": _blob,
    "letter": _letter,
}
"""What is drawn in the same colours and textures, and never labelled."""


def pose(
    outline: np.ndarray, *, side: float, angle: float, squash: float, center: tuple[float, float]
) -> np.ndarray:
    """Squash, rotate, scale and move an outline.

    Args:
        outline: (K, 2).
        side: longer side of the upright bounding box of the result, in pixels.
        angle: rotation in radians.
        squash: factor on y before the rotation.
        center: x, y of the middle of the bounding box.

    Returns:
        (K, 2) polygon in pixels, rounded to 1/100 px. Everything else (drawing, boxes, JSON)
        starts from these rounded vertices, so it agrees exactly and does not depend on the last
        bits of `cos`.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    points = (outline * [1.0, squash]) @ np.array([[cos, sin], [-sin, cos]])
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) * (side / (high - low).max())
    return np.round(points + center, 2)


def polygon_area(polygon: np.ndarray) -> float:
    """Area inside a polygon (K, 2) by the shoelace formula."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def coverage(polygon: np.ndarray, samples: int = 4) -> tuple[int, int, np.ndarray]:
    """Share of each pixel that lies inside a polygon, by the even-odd rule.

    Args:
        polygon: (K, 2) x, y with non-negative coordinates; pixel (row r, column c) is the square
            from (c, r) to (c + 1, r + 1).
        samples: points a pixel and direction that are tested.

    Returns:
        row and column of the patch's corner, and the patch (h, w), float32 in [0, 1].
    """
    left, top = np.floor(polygon.min(0)).astype(int)
    right, bottom = np.ceil(polygon.max(0)).astype(int)
    height, width = (bottom - top) * samples, (right - left) * samples
    start = (polygon - [left, top]) * samples
    end = np.roll(start, -1, axis=0)

    # Where each edge crosses each line of sample points; half open, so that a vertex counts once.
    y = np.arange(height) + 0.5
    crosses = (start[:, 1:] <= y) != (end[:, 1:] <= y)
    edge, row = np.nonzero(crosses)
    slope = (y[row] - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    x = start[edge, 0] + slope * (end[edge, 0] - start[edge, 0])
    # A crossing flips inside and outside for every sample point to its right.
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    flips = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    flips = flips.astype(np.uint8).reshape(height, width + 1)[:, :width]
    inside = np.cumsum(flips, axis=1, dtype=np.uint8) & 1  # parity survives the wrap at 256
    rows = inside.reshape(bottom - top, samples, width).sum(1, dtype=np.uint8)
    patch = rows.reshape(bottom - top, right - left, samples).sum(2, dtype=np.uint8)
    return int(top), int(left), patch / np.float32(samples * samples)
