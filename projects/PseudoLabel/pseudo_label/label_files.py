"""Pseudo boxes as YOLO text, as Pascal VOC's XML and as an upload for CVAT.

Each takes one image after the other. Only pseudo boxes are written: none of these formats can tell
an ignore box from an object.
"""

import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from .coco_files import xywh
from .detections import Detections
from .run_folder import ImageRecord

_EPOCH = (1980, 1, 1, 0, 0, 0)  # in place of the time, which would change the bytes


class LabelFileError(ValueError):
    """Images whose names cannot be those of label files."""


class YoloFolder:
    """``labels/<image>.txt`` of lines "class x y width height", centre and size as shares of the
    image's; an image without boxes has an empty one. ``data.yaml`` names the classes."""

    def __init__(self, folder: Path, categories: Sequence[str]):
        self.path = folder
        folder.mkdir()
        names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(categories))
        (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}")

    def add(self, image: ImageRecord, size: np.ndarray, found: Detections) -> None:
        box = xywh(found.box)
        box[:, :2] += box[:, 2:] / 2
        columns = (found.category, *(box / size[[1, 0, 1, 0]]).T)
        rows = zip(*(x.tolist() for x in columns), strict=True)
        _write_new(
            self.path / "labels",
            image,
            ".txt",
            "".join(map("%d %.6f %.6f %.6f %.6f\n".__mod__, rows)),
        )

    def close(self) -> None:
        """All is written."""


_VOC_OBJECT = (
    "<object><name>%s</name><pose>Unspecified</pose><truncated>0</truncated>"
    "<difficult>0</difficult><bndbox><xmin>%d</xmin><ymin>%d</ymin><xmax>%d</xmax><ymax>%d</ymax>"
    "</bndbox></object>\n"
)


class VocFolder:
    """``Annotations/<image>.xml`` and ``ImageSets/Main/train.txt``, which lists the images; corners
    are pixels from 1, both included."""

    def __init__(self, folder: Path, categories: Sequence[str]):
        self.path = folder
        self._names = np.array([escape(name) for name in categories])
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        self._list = open(folder / "ImageSets" / "Main" / "train.txt", "w")  # noqa: SIM115

    def add(self, image: ImageRecord, size: np.ndarray, found: Detections) -> None:
        corners = np.round(found.box).astype(int)
        corners[:, :2] = np.minimum(corners[:, :2] + 1, corners[:, 2:])
        columns = (self._names[found.category], *corners.T)
        objects = map(_VOC_OBJECT.__mod__, zip(*(x.tolist() for x in columns), strict=True))
        height, width = size.tolist()
        _write_new(
            self.path / "Annotations",
            image,
            ".xml",
            f"<annotation>\n<filename>{escape(image.name)}</filename>\n<size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>\n<segmented>0</segmented>\n"
            + "".join(objects)
            + "</annotation>\n",
        )
        self._list.write(str(PurePosixPath(image.name).with_suffix("")) + "\n")

    def close(self) -> None:
        self._list.close()


_CVAT_BOX = (
    '<box label=%s source="auto" occluded="0" xtl="%.2f" ytl="%.2f" xbr="%.2f" ybr="%.2f" '
    'z_order="0"/>\n'
)


class CvatZip:
    """``annotations.xml`` of the format "CVAT for images 1.1" in a zip, as CVAT's dialog "Upload
    annotations" takes it for a task that has these images."""

    def __init__(self, file: Path | IO[bytes], categories: Sequence[str]):
        self._names = np.array([quoteattr(name) for name in categories])
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        entry = zipfile.ZipInfo("annotations.xml", _EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.create_system = 3  # the same from Windows
        self._file = io.TextIOWrapper(
            self._archive.open(entry, "w", force_zip64=True), "utf-8", newline="\n"
        )
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        self._file.write("<version>1.1</version>\n")
        self._number = 0

    def add(self, image: ImageRecord, size: np.ndarray, found: Detections) -> None:
        columns = (self._names[found.category], *found.box.T)
        boxes = map(_CVAT_BOX.__mod__, zip(*(x.tolist() for x in columns), strict=True))
        height, width = size.tolist()
        self._file.write(
            f'<image id="{self._number}" name={quoteattr(image.name)} width="{width}" '
            f'height="{height}">\n{"".join(boxes)}</image>\n'
        )
        self._number += 1

    def close(self) -> None:
        self._file.write("</annotations>\n")
        self._file.close()
        self._archive.close()


def check_label_files(names: Iterable[str]) -> None:
    """Whether each image can have a label file of its own.

    Args:
        names: of images; those that turn out to be unreadable or dropped have no label file, but
            nobody knows them before.

    Raises:
        LabelFileError: one cannot.
    """
    seen: set[PurePosixPath] = set()
    for name in names:
        path = _label_path(name, "")
        if path in seen:
            raise _same_file(name)
        seen.add(path)


def _label_path(name: str, suffix: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LabelFileError(
            f"The image {name} lies outside the run's root, so that its label would lie "
            "outside the export: export the formats coco and results only, or give the folder "
            "that all images are in as the root."
        )
    return path.with_suffix(suffix)


def _same_file(name: str) -> LabelFileError:
    return LabelFileError(
        f"{name} and another image differ only in their suffix, and would have the same "
        "label file: rename one, or leave out the formats yolo and voc."
    )


def _write_new(folder: Path, image: ImageRecord, suffix: str, text: str) -> None:
    """
    Raises:
        LabelFileError: the label would lie outside the folder, or in the place of another.
    """
    path = folder / _label_path(image.name, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8", newline="\n") as f:
            f.write(text)
    except FileExistsError:
        raise _same_file(image.name) from None
