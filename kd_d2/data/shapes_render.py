"""Draws one image of the built-in data set and says what is on it. Needs NumPy alone.

Symbols: H = W = the image's side in pixels; images are float32 in [0, 1] while they are drawn.
"""

from dataclasses import dataclass, field

import numpy as np

from .shapes_look import PLAIN, Look, background, paint, photograph
from .shapes_outlines import CLASS_OUTLINES, CLUTTER_OUTLINES, coverage, pose

__all__ = ["CLASSES", "SceneObject", "render_scene"]

CLASSES = tuple(CLASS_OUTLINES)

_NOMINAL_SIDE = 96  # of an image, in pixels; what is said in pixels below is meant at this side

SIDE_RANGE = (10.0, 82.0)  # of an object, at an image side of 96: a factor of eight
# Smaller clutter would be wrong labels: nobody tells a hexagon of 8 px from a circle.
CLUTTER_SIDE_RANGE = (12.0, 52.0)
FRONT_CLUTTER_SIDE_RANGE = (12.0, 30.0)
MIN_VISIBLE = 0.5  # an object never has more than half of itself covered by others
_EMPTY_SHARE = 0.05
_COUNT_WEIGHTS = (0.2, 0.2, 0.2, 0.16, 0.14, 0.1)  # of 1 .. 6 objects
_PLACE_TRIES = 12


@dataclass
class SceneObject:
    """A labelled object: its class id, its whole outline, and what can be seen of it."""

    category: int
    polygon: np.ndarray  # (K, 2), x and y in pixels
    mask: np.ndarray = field(repr=False)  # (H, W) bool: pixels that it covers by at least a half
    visible: np.ndarray = field(repr=False)  # (H, W) bool: those of them that nothing hides

    @property
    def visibility(self) -> float:
        """Share of the object's pixels that can be seen, 0 to 1."""
        return float(self.visible.sum() / max(1, self.mask.sum()))


class _Scene:
    """The image so far and the objects on it; refuses whatever would hide an object too much."""

    def __init__(self, rng: np.random.Generator, side: int, look: Look):
        self.rng, self.side, self.look = rng, side, look
        self.image = background(rng, side, look)
        self.objects: list[SceneObject] = []

    def _hides_too_much(self, mask: np.ndarray) -> bool:
        return any(
            (thing.visible & ~mask).sum() < MIN_VISIBLE * thing.mask.sum() for thing in self.objects
        )

    def add(self, outlines: dict, side_range: tuple[float, float], category: int | None) -> None:
        """Place one outline at random, fully inside the image; gives up after a few tries."""
        rng, names = self.rng, list(outlines)
        outline = outlines[names[rng.integers(len(names)) if category is None else category]](rng)
        scale = self.side / _NOMINAL_SIDE
        low, high = np.log(side_range)
        for _ in range(_PLACE_TRIES):
            length = float(np.exp(rng.uniform(low, high))) * scale
            margin = length / 2 + 1
            center = rng.uniform(margin, self.side - margin, 2)
            polygon = pose(
                outline,
                side=length,
                angle=rng.uniform(0, 2 * np.pi),
                squash=rng.uniform(0.75, 1.0),
                center=tuple(center),
            )
            top, left, alpha = coverage(polygon)
            mask = np.zeros((self.side, self.side), bool)
            mask[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha >= 0.5
            if self._hides_too_much(mask):
                continue
            paint(self.image, top, left, alpha, rng, self.look)
            for thing in self.objects:
                thing.visible &= ~mask
            if category is not None:
                self.objects.append(SceneObject(category, polygon, mask, mask.copy()))
            return


def render_scene(
    rng: np.random.Generator, side: int = _NOMINAL_SIDE, look: Look = PLAIN
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw one image.

    Args:
        rng: the only source of randomness.
        side: height and width in pixels; the objects' sizes scale with it.
        look: how it looks; what is on it has the same distribution whatever the look.

    Returns:
        (side, side, 3) uint8 RGB image, and its labelled objects from back to front (none on about
        one image in twenty).
    """
    scene = _Scene(rng, side, look)
    empty = rng.random() < _EMPTY_SHARE
    count = 0 if empty else 1 + int(rng.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS))
    for _ in range(rng.integers(0, 3)):
        scene.add(CLUTTER_OUTLINES, CLUTTER_SIDE_RANGE, None)
    things: list[int | None] = [int(c) for c in rng.integers(len(CLASSES), size=count)]
    things += [None] * int(rng.integers(0, 2))
    for index in rng.permutation(len(things)):
        if things[index] is None:
            scene.add(CLUTTER_OUTLINES, FRONT_CLUTTER_SIDE_RANGE, None)
        else:
            scene.add(CLASS_OUTLINES, SIDE_RANGE, things[index])
    return photograph(rng, scene.image, look), scene.objects
