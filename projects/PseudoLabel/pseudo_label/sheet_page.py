"""Pages of a check sheet: as pictures of 5 x 5 cells, and as one HTML file without any other."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from kd_d2.checkpoint import atomic_write
from kd_d2.visualization.detections import class_color
from kd_d2.visualization.html_document import html_document

from .report_page import STYLE
from .run_folder import ImageRecord
from .sheet_cells import SIDE

_COLUMNS, _GAP, _CAPTION, _HEADER = 5, 14, 44, 84  # pixels
_DPI = 100
_WORDS, _NAME = 45, 54  # letters of a caption

_STYLE = f"""{STYLE}
  nav a {{ display: inline-block; margin: 0 .9rem .3rem 0; }}
  .sheet {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr));
           gap: .9rem; }}
  .sheet figure {{ margin: 0; font-size: .8rem; line-height: 1.35; }}
  .sheet img {{ width: 100%; height: auto; max-width: none; border-radius: 4px; }}
  .sheet figcaption {{ font-weight: normal; }} .sheet b {{ display: block; }}
  .sheet span {{ color: #667; }} .key-name {{ white-space: nowrap; }}"""
_BODY = """\
<p>Solid boxes are pseudo boxes; dashed ones are ignore boxes, unless a heading says what they are.
Words are class and score. The colour is the teacher:{teachers}</p>
<nav>{links}</nav>
{sections}"""


@dataclass
class ShownCell:
    """
    Attributes:
        pixels: (S, S, 3) uint8.
        words: why it is there.
    """

    pixels: np.ndarray
    record: ImageRecord
    words: str


def draw_page(
    title: str, question: str, teachers: Sequence[str], cells: Sequence[ShownCell]
) -> np.ndarray:
    """(H, W, 3) uint8: up to 25 cells with their captions, and what to look for on top."""
    rows = -(-len(cells) // _COLUMNS)
    step = SIDE + _CAPTION + _GAP
    width, height = _COLUMNS * (SIDE + _GAP) + _GAP, _HEADER + rows * step
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

    def write(x: float, y: float, words: str, **style) -> None:
        figure.text(x / width, 1 - y / height, words, va="top", **style)

    write(_GAP, 12, title, fontsize=17, weight="bold")
    write(_GAP, 48, question, fontsize=11, color="#556")
    keys = [
        Line2D([], [], color=color, linewidth=4, label=name)
        for color, name in zip(_colors(len(teachers)), teachers)
    ]
    figure.legend(
        handles=keys,
        loc="upper right",
        bbox_to_anchor=(1 - _GAP / width, 1 - 8 / height),
        ncols=min(len(keys), 6),
        fontsize=11,
        frameon=False,
    )
    for i, cell in enumerate(cells):
        row, column = divmod(i, _COLUMNS)
        x, y = _GAP + column * (SIDE + _GAP), _HEADER + row * step
        figure.figimage(cell.pixels, x, height - y - SIDE)
        write(x, y + SIDE + 4, _shortened(cell.words, _WORDS), fontsize=9.5, weight="bold")
        name = f"id {cell.record.id}  {cell.record.name}"
        write(x, y + SIDE + 22, _shortened(name, _NAME), fontsize=8.5, color="#556")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class SheetPage:
    """Collects the strata of a sheet for one HTML page."""

    def __init__(self, title: str, teachers: Sequence[str]):
        self._title, self._teachers = title, teachers
        self._links: list[str] = []
        self._sections: list[str] = []

    def add(self, key: str, title: str, question: str, cells: Sequence[ShownCell]) -> None:
        self._links.append(f'<a href="#{key}">{html.escape(title)} ({len(cells)})</a>')
        shown = "\n".join(map(_figure, cells)) or "<p>There is none.</p>"
        self._sections.append(
            f'<h2 id="{key}">{html.escape(title)}</h2>\n<p class="quiet">{html.escape(question)}'
            f'</p>\n<div class="sheet">\n{shown}\n</div>'
        )

    def write(self, path: Path) -> Path:
        teachers = "".join(
            f'<span class="key-name"><i class="key" style="background:{color}"></i>'
            f"{html.escape(name)}</span> "
            for color, name in zip(_colors(len(self._teachers)), self._teachers)
        )
        body = _BODY.format(
            teachers=teachers,
            links="".join(self._links),
            sections="\n".join(self._sections),
        )
        with atomic_write(str(path)) as f:
            f.write(html_document(self._title, _STYLE, body).encode())
        return path


def _figure(cell: ShownCell) -> str:
    out = io.BytesIO()
    Image.fromarray(cell.pixels).save(out, "JPEG", quality=88)
    source = base64.b64encode(out.getvalue()).decode()
    words, name = html.escape(cell.words), html.escape(cell.record.name)
    return (
        f'<figure><img width="{SIDE}" height="{SIDE}" alt="{name}" '
        f'src="data:image/jpeg;base64,{source}">'
        f"<figcaption><b>{words}</b><span>id {cell.record.id}, {name}</span></figcaption></figure>"
    )


def _colors(count: int) -> list[str]:
    """Of so many teachers."""
    return [to_hex(class_color(i, count)) for i in range(count)]


def _shortened(text: str, most: int) -> str:
    """A text without its middle, where it is too long.

    >>> _shortened("street_1/frame_000123.jpg", 15)
    'street_…123.jpg'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"
