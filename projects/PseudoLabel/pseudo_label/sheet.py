"""The check sheet of a run: pictures by which a person judges its labels in minutes.

sheet/<stratum>_<page>.png   pages of 5 x 5 images
sheet/sheet.html             all of them, without any other file
sheet/cvat.zip               their pseudo boxes, to be uploaded to CVAT for a task of these images
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_d2.checkpoint import atomic_write
from kd_d2.config.rules import ConfigError
from kd_d2.visualization.page import write_png

from .detections import Detections
from .label_files import CvatZip
from .labelled_run import LabelledRun, LabelledShard
from .run_folder import ImageRecord, RunFolder
from .shards import USED
from .sheet_candidates import Candidates, Cell
from .sheet_cells import CellPainter, View, same_boxes
from .sheet_page import SheetPage, ShownCell, draw_page

FOLDER = "sheet"
PER_PAGE = 25

STRATA = {
    "random": ("Random", "Used images, by chance: what a training sees."),
    "most": ("Most boxes", "Are there doubles, or boxes of parts of objects?"),
    "empty": ("Without boxes", "They train as images without objects. Is there one?"),
    "lowest": (
        "Lowest kept scores",
        "Of each class, framed in white. If most are wrong, its threshold is too low.",
    ),
    "dropped": (
        "Highest dropped scores",
        "Of each class, framed in white. If most are right, its threshold is too high.",
    ),
    "disagreement": (
        "Teachers disagree",
        "Dashed: pseudo boxes that not all teachers of the class found. Who is right?",
    ),
    "rarest": ("Rarest classes", "Framed in white: boxes of the classes with the fewest."),
}
"""Strata: title, and what to look for."""


@dataclass(frozen=True)
class SheetSettings:
    """
    Attributes:
        seed: of what is chosen by chance.
        cells: images of a stratum.
        most_cells: of a stratum with images of each class.

    Raises:
        ConfigError: a value that cannot be.
    """

    seed: int = 0
    cells: int = PER_PAGE
    most_cells: int = 4 * PER_PAGE

    def __post_init__(self):
        for name, least in (("seed", 0), ("cells", 1), ("most_cells", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}.")


def write_sheet(run: RunFolder, settings: SheetSettings | None = None) -> list[Path]:
    """Draws the check sheet.

    Returns:
        sheet.html, the pages, and cvat.zip.

    Raises:
        RunError, ShardError: the run is not complete.
    """
    settings = settings or SheetSettings()
    labels = LabelledRun(run)
    candidates = Candidates(labels, settings.cells, settings.most_cells, settings.seed)
    for part in labels.shards("candidates"):
        candidates.add(part)
    cells = {stratum: candidates.chosen(stratum) for stratum in STRATA}
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*_[0-9][0-9].png"):
        old.unlink()
    shown = {x.image for of_stratum in cells.values() for x in of_stratum}
    looked = {i: x for part in _with_images(labels, shown) for i, x in _looked_at(part, shown)}
    teachers = [t.name for t in run.teachers]
    painter = CellPainter(labels.categories, teachers, labels.known)
    page = SheetPage(f"Check sheet: {run.folder.resolve().name}", teachers)
    paths = []
    for stratum, (title, question) in STRATA.items():
        shown_cells = [_shown(painter, labels, x, looked[x.image]) for x in cells[stratum]]
        page.add(stratum, title, question, shown_cells)
        for number, first in enumerate(range(0, len(shown_cells), PER_PAGE)):
            path = folder / f"{stratum}_{number:02d}.png"
            pixels = draw_page(title, question, teachers, shown_cells[first : first + PER_PAGE])
            write_png(path, pixels)
            paths.append(path)
    return [page.write(folder / "sheet.html"), *paths, _write_cvat(folder, labels, looked)]


@dataclass
class _Looked:
    """What is known of an image that is shown."""

    record: ImageRecord
    size: np.ndarray
    used: bool
    kept: Detections
    ignored: Detections


def _with_images(labels: LabelledRun, images: set[int]) -> Iterator[LabelledShard]:
    for shard in labels.run.shards:
        if any(shard.first <= i < shard.last for i in images):
            yield labels.read(shard)


def _looked_at(part: LabelledShard, images: set[int]) -> Iterator[tuple[int, _Looked]]:
    for i in sorted(x for x in images if part.shard.first <= x < part.shard.last):
        place = i - part.shard.first
        kept, ignored = (x[x.image == i] for x in (part.kept, part.ignored))
        used = part.status[place] == USED
        yield i, _Looked(part.records[place], part.sizes[place], used, kept, ignored)


def _shown(painter: CellPainter, labels: LabelledRun, cell: Cell, image: _Looked) -> ShownCell:
    solid, dashed, focus = image.kept, image.ignored, cell.focus
    if cell.stratum == "disagreement":
        doubtful = solid.votes < labels.known[solid.category]
        solid, dashed = solid[~doubtful], solid[doubtful]
    if cell.stratum == "dropped":
        others = ~same_boxes(dashed, focus)
        dashed = Detections.concatenate([focus, dashed[others]])
    view = View(image.record, solid, dashed, focus, cell.stratum == "disagreement")
    return ShownCell(painter.paint(view), image.record, _words(labels, cell, image))


def _words(labels: LabelledRun, cell: Cell, image: _Looked) -> str:
    """Why the image is there."""
    if len(cell.focus):
        category, score = int(cell.focus.category[0]), float(cell.focus.score[0])
        name, t_keep = labels.categories[category], float(labels.t_keep[category])
        if cell.stratum == "rarest":
            return f"{name} {score:.2f}, one of {cell.count} in the run"
        if cell.stratum == "lowest":
            return f"{name} {score:.3f}, kept from {t_keep:.3g}"
        fate = "image dropped" * (not image.used) or "dropped"
        if same_boxes(image.ignored, cell.focus).any():
            fate = "ignore box"
        return f"{name} {score:.3f}, below {t_keep:.3g}: {fate}"
    if cell.stratum == "disagreement":
        return f"{cell.count} of {len(image.kept)} boxes in doubt"
    ignored = f", {len(image.ignored)} ignored" if len(image.ignored) else ""
    return f"{len(image.kept)} boxes{ignored}"


def _write_cvat(folder: Path, labels: LabelledRun, looked: dict[int, _Looked]) -> Path:
    path = folder / "cvat.zip"
    with atomic_write(str(path)) as f:
        archive = CvatZip(f, labels.categories)
        for _, image in sorted(looked.items()):
            archive.add(image.record, image.size, image.kept)
        archive.close()
    return path
