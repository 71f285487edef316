"""What the built-in data set looks like: colours, textures, light and lens. Needs NumPy alone.

Symbols: H = W = the image's side in pixels; images are float32 in [0, 1] while they are drawn.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["PLAIN", "SHIFTED", "Look", "background", "paint", "photograph"]

_TEXTURES = ("solid", "gradient", "glow", "stripes", "checks", "dots", "grain")
_SMOOTH_TEXTURES = _TEXTURES[:3]  # finer ones would only be noise on a small object


@dataclass(frozen=True)
class Look:
    """How images are coloured, lit and taken. The defaults are the look of `shapes`.

    Pairs are the ends of uniform distributions, from which each image, or each object, has its own
    value; (0, 0) leaves an effect out. What is where has the same distribution whatever the look.

    Attributes:
        saturation: of the colours of objects and clutter, at most.
        distance: between such a colour and what lies behind, of eight draws the first that has it.
        textures: of objects and clutter that are not small.
        contrast: between the two colours of such a texture.
        bevel: how much lighter one side of an object's rim is, and how much darker the other.
        ground_saturation, ground_textures, ground_contrast: the same of the background.
        mottle: strength of the soft coloured spots on the background.
        relief: depth of the background's unevenness, which is lit from one side.
        light: unevenness of the light.
        exposure: factor on all pixels.
        cast: what the colour of the light takes from each channel, as a share.
        rain: brightness of the streaks before the scene.
        haze: share of a grey veil before the scene.
        blur_share, blur: share of the images that are blurred; sigma in pixels.
        noise_share, noise: share of the images that are noisy; sigma.
    """

    saturation: float = 1.0
    distance: float = 0.75
    textures: tuple[str, ...] = _TEXTURES
    contrast: tuple[float, float] = (0.03, 0.15)
    bevel: tuple[float, float] = (0.0, 0.0)
    ground_saturation: float = 0.7
    ground_textures: tuple[str, ...] = _TEXTURES
    ground_contrast: tuple[float, float] = (0.05, 0.3)
    mottle: tuple[float, float] = (0.05, 0.25)
    relief: tuple[float, float] = (0.0, 0.0)
    light: tuple[float, float] = (0.0, 0.35)
    exposure: tuple[float, float] = (0.75, 1.1)
    cast: tuple[float, float] = (0.0, 0.0)
    rain: tuple[float, float] = (0.0, 0.0)
    haze: tuple[float, float] = (0.0, 0.0)
    blur_share: float = 0.6
    blur: tuple[float, float] = (0.4, 0.8)
    noise_share: float = 0.6
    noise: tuple[float, float] = (0.01, 0.05)


PLAIN = Look()
"""Of `shapes`."""

SHIFTED = Look(
    saturation=0.8,
    distance=1.2,
    textures=("solid", "gradient", "glow", "rough", "veins"),
    contrast=(0.05, 0.15),
    bevel=(0.15, 0.3),
    ground_saturation=0.5,
    ground_textures=("rough", "veins", "wood"),
    ground_contrast=(0.15, 0.35),
    mottle=(0.05, 0.2),
    relief=(1.0, 2.5),
    light=(0.2, 0.6),
    exposure=(0.75, 1.05),
    cast=(0.0, 0.3),
    rain=(0.25, 0.5),
    haze=(0.05, 0.2),
    blur_share=1.0,
    blur=(0.7, 1.2),
    noise_share=1.0,
    noise=(0.03, 0.05),
)
"""Of `shapes_shifted`: dull colours on rough ground, seen through rain and haze."""


def _random_colors(rng: np.random.Generator, num: int, max_saturation: float) -> np.ndarray:
    """(num, 3) RGB colours, uniform in hue, saturation and value."""
    hue, saturation, value = rng.random((3, num, 1))
    saturation, value = saturation * max_saturation, 0.12 + 0.88 * value
    offset = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    ramp = np.clip(np.minimum(offset, 4.0 - offset), 0.0, 1.0)
    return (value * (1.0 - saturation * ramp)).astype(np.float32)


def _contrasting_color(
    rng: np.random.Generator, behind: np.ndarray, look: Look = PLAIN
) -> np.ndarray:
    """A random colour, whatever the class is, that a person can tell from what lies behind it."""
    colors = _random_colors(rng, 8, look.saturation)
    distances = np.abs(colors - behind).sum(1)
    # Capped, so that the first colour that is far enough wins and not always the most extreme one.
    return colors[int(np.argmax(np.minimum(distances, look.distance)))]


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """(height, width) values in [0, 1]: a random grid, bilinearly enlarged."""
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    y = np.linspace(0, cells, height, endpoint=False, dtype=np.float32)
    x = np.linspace(0, cells, width, endpoint=False, dtype=np.float32)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], x - x0
    rows = grid[y0] * (1 - fy) + grid[y0 + 1] * fy
    return rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx


def _fractal_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) values in [0, 1], as uneven in the large as in the small, like stone."""
    cells, finest = int(rng.integers(2, 5)), max(height, width) // 2
    total, weight = np.zeros((height, width), np.float32), np.float32(1.0)
    while cells <= finest:
        total += weight * (_smooth_noise(rng, height, width, cells) - 0.5)
        cells, weight = 2 * cells, weight * np.float32(0.65)
    return np.clip(0.5 + total, 0, 1)


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
    if kind == "rough":
        return _fractal_noise(rng, height, width)
    if kind == "veins":
        return 1 - np.minimum(1, 6 * np.abs(_fractal_noise(rng, height, width) - 0.5))
    y = np.arange(height, dtype=np.float32)[:, None] - height / 2
    x = np.arange(width, dtype=np.float32) - width / 2
    u = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    v = np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x
    if kind == "gradient":
        return np.clip(0.5 + u / side, 0, 1)
    if kind == "glow":
        return np.clip(np.sqrt(u * u + v * v) / (0.6 * side), 0, 1)
    wave = np.float32(2 * np.pi / period)
    if kind == "wood":
        return 0.5 + 0.5 * np.sin(u * wave + 8 * _fractal_noise(rng, height, width))
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
    image: np.ndarray,
    top: int,
    left: int,
    alpha: np.ndarray,
    rng: np.random.Generator,
    look: Look = PLAIN,
) -> None:
    """Draw a random textured fill where `alpha` (h, w) says so, onto an image (H, W, 3)."""
    height, width = alpha.shape
    patch = image[top : top + height, left : left + width]
    alpha = alpha[..., None]
    behind = (patch * alpha).sum((0, 1)) / max(1e-6, float(alpha.sum()))
    kinds = look.textures if max(height, width) >= 20 else _SMOOTH_TEXTURES
    color = _contrasting_color(rng, behind, look)
    fill = _fill(rng, height, width, color, rng.uniform(*look.contrast), kinds)
    if any(look.bevel):
        inner = np.pad(alpha, ((1, 1), (1, 1), (0, 0)))
        fill = fill + np.float32(rng.uniform(*look.bevel)) * (inner[2:, 2:] - inner[:-2, :-2])
    patch += alpha * (fill - patch)


def background(rng: np.random.Generator, side: int, look: Look = PLAIN) -> np.ndarray:
    """(side, side, 3) image without objects."""
    color = _random_colors(rng, 1, look.ground_saturation)[0]
    contrast = rng.uniform(*look.ground_contrast)
    image = _fill(rng, side, side, color, contrast, look.ground_textures)
    cells = int(rng.integers(3, 9))
    noise = [_smooth_noise(rng, side, side, cells) for _ in range(3)]
    image = image + rng.uniform(*look.mottle) * (np.stack(noise, axis=2) - 0.5)
    if any(look.relief):
        height = _fractal_noise(rng, side, side)
        slope = height - np.pad(height, ((1, 0), (1, 0)), mode="edge")[:-1, :-1]
        image = image * (1 + np.float32(rng.uniform(*look.relief)) * slope)[..., None]
    return image


def _streaks(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) of 0 and 1: where falling drops leave a streak."""
    drops = (rng.random((side, side), dtype=np.float32) < 0.006).astype(np.float32)
    lean, total = rng.uniform(-0.7, 0.7), np.zeros((side, side), np.float32)
    for step in range(side // 8):
        total += np.roll(drops, (step, round(lean * step)), axis=(0, 1))
    return np.minimum(total, 1)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    radius = max(2, int(np.ceil(2 * sigma)))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    size = image.shape[0]
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image, pad, mode="edge")
        starts = offsets + radius
        parts = [padded[k : k + size] if axis == 0 else padded[:, k : k + size] for k in starts]
        image = sum(weight * part for weight, part in zip(kernel, parts, strict=True))
    return image


def photograph(rng: np.random.Generator, image: np.ndarray, look: Look = PLAIN) -> np.ndarray:
    """Light, rain, haze, lens blur and sensor noise; returns (H, W, 3) uint8."""
    side = image.shape[0]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(*look.light)
    ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    light = np.float32(np.cos(angle)) * ramp + np.float32(np.sin(angle)) * ramp[:, None]
    image = np.clip(image, 0, 1) * (1 + np.float32(strength) * light)[..., None]
    image = image * np.float32(rng.uniform(*look.exposure))
    if any(look.cast):
        image = image * (1 - rng.uniform(*look.cast, 3).astype(np.float32))
    if any(look.rain):
        image = image + np.float32(rng.uniform(*look.rain)) * _streaks(rng, side)[..., None]
    if any(look.haze):
        veil = np.float32(rng.uniform(0.5, 0.9))
        image = image + np.float32(rng.uniform(*look.haze)) * (veil - image)
    if rng.random() < look.blur_share:
        image = _blur(image, rng.uniform(*look.blur))
    if rng.random() < look.noise_share:
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(rng.uniform(*look.noise)) * noise
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
