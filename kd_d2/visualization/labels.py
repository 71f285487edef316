"""Words at boxes that do not cover each other."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def place_labels(axes: Axes, labels: list[tuple[tuple, str, object]], size: float = 6.5) -> int:
    """Writes each label at the first free place at its box; without one it is left out.

    The axes must have their limits and their place in the figure.

    Args:
        labels: x0, y0, x1, y1 of the box; text; colour. Earlier ones have the choice.
        size: of the font, in points.

    Returns:
        how many found a place.
    """
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.apply_aspect()
    inside = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    for box, words, color in labels:
        text = axes.text(
            *(0, 0, words),
            fontsize=size,
            color="black" if _is_bright(color) else "white",
            bbox={"boxstyle": "square,pad=0.12", "fc": color, "ec": "none", "alpha": 0.9},
        )
        found = _free_place(text, box, renderer, inside, taken)
        if found is None:
            text.remove()
        else:
            taken.append(found)
    return len(taken)


def _free_place(text: Text, box: tuple, renderer, inside: Bbox, taken: list[Bbox]) -> Bbox | None:
    x0, y0, x1, y1 = box
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    for x, y, horizontal, vertical in (
        (x0, y0, "left", "bottom"),  # above the box
        (x0, y0, "left", "top"),  # inside
        (x1, y0, "right", "top"),
        (x0, y1, "left", "bottom"),
        (x1, y1, "right", "bottom"),
        (x0, y1, "left", "top"),  # below
        (x1, y0, "right", "bottom"),
        (x1, y1, "right", "top"),
        (*middle, "center", "center"),
        (x1, middle[1], "left", "center"),  # beside it
        (x0, middle[1], "right", "center"),
    ):
        text.set(x=x, y=y, ha=horizontal, va=vertical)
        place = text.get_window_extent(renderer).padded(1.5)
        fits = inside.containsx(place.x0) and inside.containsx(place.x1)
        fits = fits and inside.containsy(place.y0) and inside.containsy(place.y1)
        if fits and not any(place.overlaps(other) for other in taken):
            return place
    return None


def _is_bright(color) -> bool:
    red, green, blue = to_rgb(color)
    return 0.3 * red + 0.59 * green + 0.11 * blue > 0.55
