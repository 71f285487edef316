"""Draws one image of the built-in data set and says what is on it. Needs NumPy alone.

Symbols: H = W = the image's side in pixels; images are float32 in [0, 1] while they are drawn.
"""

from dataclasses import dataclass, field

import numpy as np

from .shapes_outlines import CLASS_OUTLINES, CLUTTER_OUTLINES, coverage, pose

__all__ = ["CLASSES", "SceneObject", "paint", "render_scene"]

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
_TEXTURES = ("solid", "gradient", "glow", "stripes", "checks", "dots", "grain")
_SMOOTH_TEXTURES = _TEXTURES[:3]  # finer ones would only be noise on a small object


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


def _random_colors(rng: np.random.Generator, num: int, max_saturation: float = 1.0) -> np.ndarray:
    """(num, 3) RGB colours, uniform in hue, saturation and value."""
    hue, saturation, value = rng.random((3, num, 1))
    saturation, value = saturation * max_saturation, 0.12 + 0.88 * value
    offset = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    ramp = np.clip(np.minimum(offset, 4.0 - offset), 0.0, 1.0)
    return (value * (1.0 - saturation * ramp)).astype(np.float32)


def _contrasting_color(rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
    """A random colour, whatever the class is, that a person can tell from what lies behind it."""
    colors = _random_colors(rng, 8)
    distances = np.abs(colors - behind).sum(1)
    # Capped, so that the first colour that is far enough wins and not always the most extreme one.
    return colors[int(np.argmax(np.minimum(distances, 0.75)))]


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """(height, width) values in [0, 1]: a random grid, bilinearly enlarged."""
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    y = np.linspace(0, cells, height, endpoint=False, dtype=np.float32)
    x = np.linspace(0, cells, width, endpoint=False, dtype=np.float32)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], x - x0
    rows = grid[y0] * (1 - fy) + grid[y0 + 1] * fy
    return rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx


def _texture(
    rng: np.random.Generator, height: int, width: int, kinds: tuple[str, ...]
) -> np.ndarray:
    """(height, width) mixing weights in [0, 1] of a random texture of the given kinds."""
    kind = kinds[rng.integers(len(kinds))]
    side = max(height, width)
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    period = rng.uniform(max(4.0, side / 9), max(6.0, side / 4))
    if kind == "solid":
        return np.zeros((height, width), np.float32)
    if kind == "grain":
        return _smooth_noise(rng, height, width, int(np.clip(side / 4, 2, 24)))
    y = np.arange(height, dtype=np.float32)[:, None] - height / 2
    x = np.arange(width, dtype=np.float32) - width / 2
    u = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    v = np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x
    if kind == "gradient":
        return np.clip(0.5 + u / side, 0, 1)
    if kind == "glow":
        return np.clip(np.sqrt(u * u + v * v) / (0.6 * side), 0, 1)
    wave = np.float32(2 * np.pi / period)
    across = np.sin(u * wave + np.float32(phase))
    if kind == "stripes":
        return np.clip(0.5 + 1.5 * across, 0, 1)
    along = np.sin(v * wave + np.float32(phase))
    if kind == "checks":
        return np.clip(0.5 + 3.0 * across * along, 0, 1)
    return np.clip(3.0 * (across + along - 0.7), 0, 1)  # dots


def _fill(
    rng: np.random.Generator, height: int, width: int, color: np.ndarray, contrast: float, kinds
) -> np.ndarray:
    """(height, width, 3) of a colour, textured with a second one at most `contrast` away."""
    shift = rng.uniform(-0.15, 0.15, 3) + rng.choice([-1.0, 1.0]) * contrast
    other = np.clip(color + shift, 0.0, 1.0).astype(np.float32)
    weights = _texture(rng, height, width, kinds)[..., None]
    return color * (1 - weights) + other * weights


def paint(
    image: np.ndarray, top: int, left: int, alpha: np.ndarray, rng: np.random.Generator
) -> None:
    """Draw a random textured fill where `alpha` (h, w) says so, onto an image (H, W, 3)."""
    height, width = alpha.shape
    patch = image[top : top + height, left : left + width]
    alpha = alpha[..., None]
    behind = (patch * alpha).sum((0, 1)) / max(1e-6, float(alpha.sum()))
    kinds = _TEXTURES if max(height, width) >= 20 else _SMOOTH_TEXTURES
    color = _contrasting_color(rng, behind)
    patch += alpha * (_fill(rng, height, width, color, rng.uniform(0.03, 0.15), kinds) - patch)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    color = _random_colors(rng, 1, max_saturation=0.7)[0]
    image = _fill(rng, side, side, color, rng.uniform(0.05, 0.3), _TEXTURES)
    cells = int(rng.integers(3, 9))
    noise = [_smooth_noise(rng, side, side, cells) for _ in range(3)]
    return image + rng.uniform(0.05, 0.25) * (np.stack(noise, axis=2) - 0.5)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    size = image.shape[0]
    for axis in (0, 1):
        pad = [(2, 2) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image, pad, mode="edge")
        parts = [padded[k : k + size] if axis == 0 else padded[:, k : k + size] for k in range(5)]
        image = sum(weight * part for weight, part in zip(kernel, parts, strict=True))
    return image


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, lens blur and sensor noise; returns (H, W, 3) uint8."""
    side = image.shape[0]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.35)
    ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    light = np.float32(np.cos(angle)) * ramp + np.float32(np.sin(angle)) * ramp[:, None]
    image = np.clip(image, 0, 1) * (1 + np.float32(strength) * light)[..., None]
    image = image * np.float32(rng.uniform(0.75, 1.1))
    if rng.random() < 0.6:
        image = _blur(image, rng.uniform(0.4, 0.8))
    if rng.random() < 0.6:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(rng.uniform(0.01, 0.05)) * noise
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


class _Scene:
    """The image so far and the objects on it; refuses whatever would hide an object too much."""

    def __init__(self, rng: np.random.Generator, side: int):
        self.rng, self.side = rng, side
        self.image = _background(rng, side)
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
            paint(self.image, top, left, alpha, rng)
            for thing in self.objects:
                thing.visible &= ~mask
            if category is not None:
                self.objects.append(SceneObject(category, polygon, mask, mask.copy()))
            return


def render_scene(
    rng: np.random.Generator, side: int = _NOMINAL_SIDE
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw one image.

    Args:
        rng: the only source of randomness.
        side: height and width in pixels; the objects' sizes scale with it.

    Returns:
        (side, side, 3) uint8 RGB image, and its labelled objects from back to front (none on about
        one image in twenty).
    """
    scene = _Scene(rng, side)
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
    return _photograph(rng, scene.image), scene.objects
