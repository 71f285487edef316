"""Pictures of several images as files: one each, a contact sheet of all, and an HTML index."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kd_d2.checkpoint import atomic_write
from kd_d2.visualization.html_document import html_document
from kd_d2.visualization.observation import Observation
from kd_d2.visualization.strip import Look, draw_strip, stack_strips

SHEET, INDEX, FOLDER = "contact_sheet.png", "index.html", "pictures"

_STYLE = """  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px;
         padding: 0 1rem; color: #222; background: #fff; }
  h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
  .strip { overflow-x: auto; border: 1px solid #ddd; }
  .strip img { display: block; max-width: none; }
  .note { background: #fff6dd; border-left: 4px solid #e0a800; padding: .4rem .8rem; }
  table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; }
  td, th { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top; }
  dt { font-weight: 600; } dd { margin: 0 0 .3rem 1.2rem; }"""
_BODY = """<p>{subtitle}</p>
{notes}
<details open><summary>How to read the pictures</summary>
{legend}
</details>
<p><a href="{sheet}">All images on one contact sheet</a></p>
{unusable}
{images}"""

_LEGENDS = {
    "boxes": (
        "Boxes",
        "The colour is the class. A number at a box of the ground truth is its number in the "
        "attention; at a detection it is the score in percent. A solid box overlaps an object of "
        "its class by an IoU of 0.5 or more; a dashed one is wrong, or a double. Words that would "
        "cover each other are left out; the tables have them all.",
    ),
    "components": (
        "Features",
        "The first three principal components over the cells of a level, each channel "
        "standardised, as red, green and blue from the 1st to the 99th percentile. The number is "
        "the share of the variance that the three colours show. Student and teacher have colours "
        "of their own, because their channels mean different things. Where there is a row between "
        "them (what the loss compares with the teacher), it is painted in the teacher's colours: "
        "where the two rows agree, the student has learned what the teacher teaches.",
    ),
    "energy": (
        "Features",
        "Where a level stands out: root mean square over channels, each standardised over the "
        "cells; every map is scaled to its own range.",
    ),
    "attention": (
        "Attention",
        "Row by row, how much each object that asks takes from each that answers (a row sums to "
        "1), averaged over attention heads; brightness is scaled to each picture.",
    ),
    "matches": (
        "Matching levels",
        "Row by row, how much of each level of the student goes into what is compared with the "
        "teacher's feature of an object (a row sums to 1). The red frame is the level that the "
        "teacher's feature is from. Numbers are those of the ground truth or, without labels, of "
        "the student's detections, the surest first.",
    ),
    "positives": (
        "Whose anchors learn what",
        "A dot is the centre of an anchor that learns the object of its colour; the coarser its "
        "level, the larger the dot. By what the student predicts, by what the other network does, "
        "and where they learn together the labels of both.",
    ),
}


@dataclass
class _Entry:
    file: str
    shown: Observation


class PicturePage:
    """Collects observations; each is drawn and written at once, and only its picture is kept."""

    def __init__(self, folder: Path, look: Look, style: str):
        """
        Args:
            folder: made if it does not exist; files of former pages are replaced.
            style: of the features, a key of ``FEATURE_STYLES``.
        """
        self.folder, self.look, self.style = folder, look, style
        self._entries: list[_Entry] = []
        self._strips: list[np.ndarray] = []
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)

    def add(self, shown: Observation) -> None:
        strip = draw_strip(shown, self.look)
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(shown.name).stem)[:60]
        file = f"{FOLDER}/{len(self._entries) + 1:03d}_{stem}.png"
        write_png(self.folder / file, strip)
        self._strips.append(strip)
        # What the page says of it needs no pixels.
        shown.tiles = {}
        shown.image = shown.image[:0]
        for boxes in (shown.truth, shown.student, shown.teacher):
            if boxes is not None:
                boxes.masks = None
        self._entries.append(_Entry(file, shown))

    def write(self, title: str, subtitle: str, unusable: list[str]) -> list[Path]:
        """Writes the contact sheet and the index.

        Args:
            unusable: sentences about images that are not shown.

        Returns:
            the two paths.
        """
        write_png(self.folder / SHEET, stack_strips(self._strips))
        all_notes = [set(entry.shown.notes) for entry in self._entries]
        common = set.intersection(*all_notes)
        legends = ["boxes", self.style]
        legends += ["attention"] * any(e.shown.relations is not None for e in self._entries)
        legends += ["positives"] * any(e.shown.positives for e in self._entries)
        legends += ["matches"] * any(e.shown.matches is not None for e in self._entries)
        body = _BODY.format(
            subtitle=html.escape(subtitle),
            sheet=SHEET,
            notes=_notes(n for n in self._entries[0].shown.notes if n in common),
            legend="<dl>" + "".join(map(_legend, legends)) + "</dl>",
            unusable=_unusable(unusable),
            images="\n".join(self._image(entry, common) for entry in self._entries),
        )
        with atomic_write(str(self.folder / INDEX), "w") as f:
            f.write(html_document(title, _STYLE, body))
        return [self.folder / SHEET, self.folder / INDEX]

    def _image(self, entry: _Entry, common: set[str]) -> str:
        shown = entry.shown
        name, file = html.escape(shown.name), html.escape(entry.file)
        notes = _notes(n for n in shown.notes if n not in common)
        return (
            f'<h2>{name}</h2>\n{notes}<div class="strip"><a href="{file}">'
            f'<img src="{file}" alt="{name}: what student and teacher see"></a></div>\n'
            f"<details><summary>Objects and detections</summary>{self._table(shown)}</details>"
        )

    def _table(self, shown: Observation) -> str:
        columns = {}
        if shown.truth is not None:
            names = [self.look.names[c] for c in shown.truth.classes]
            columns["ground truth"] = [f"{i} {name}" for i, name in enumerate(names, 1)]
        for title, found in (("student", shown.student), (shown.role, shown.teacher)):
            if found is not None:
                columns[title] = [
                    f"{self.look.names[c]} {100 * s:.0f} %"
                    for c, s in zip(found.classes, found.scores, strict=True)
                ]
        head = "".join(f"<th>{title}</th>" for title in columns)
        body = "".join(
            "<td>" + ("<br>".join(map(html.escape, lines)) or "none") + "</td>"
            for lines in columns.values()
        )
        return f"<table><tr>{head}</tr><tr>{body}</tr></table>"


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 whole or not at all."""
    with atomic_write(str(path)) as f:
        Image.fromarray(pixels).save(f, format="PNG", optimize=False)


def _notes(sentences) -> str:
    return "".join(f'<p class="note">{html.escape(s)}</p>\n' for s in sentences)


def _legend(key: str) -> str:
    term, text = _LEGENDS[key]
    return f"<dt>{term}</dt><dd>{html.escape(text)}</dd>"


def _unusable(sentences: list[str]) -> str:
    if not sentences:
        return ""
    rows = "".join(f"<li>{html.escape(s)}</li>" for s in sentences)
    return f'<div class="note">Not shown:<ul>{rows}</ul></div>'
