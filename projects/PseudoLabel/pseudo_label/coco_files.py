"""COCO's format as text, image by image: memory does not depend on how many there are.

Boxes have 2 decimals, scores, weights and agreements 4: a hundredth of a pixel is less than any
detector knows, and equal runs give equal bytes.

Symbols: n boxes, k images.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_d2.checkpoint import atomic_write

from .detections import Detections
from .run_folder import ImageRecord

_BOX = '"bbox": [%.2f, %.2f, %.2f, %.2f]'
_ANNOTATION = (
    '{"id": %d, "image_id": %d, "category_id": %d, ' + _BOX + ', "area": %.2f, "iscrowd": 0, '
    '"segmentation": [], "score": %.4f, "weight": %.4f, "teacher": %s, "votes": %d%s, "ignore": %d}'
)
_RESULT = '{"image_id": %d, "category_id": %d, ' + _BOX + ', "score": %.4f}'


def xywh(box: np.ndarray) -> np.ndarray:
    """Corners as COCO's boxes, in hundredths of a pixel, so that no box leaves its image.

    Args:
        box: (n, 4) x0, y0, x1, y1.

    Returns:
        (n, 4) float64: x, y, width, height.

    >>> xywh(np.array([[0.004, 1.5, 10.006, 4.0]]))
    array([[ 0.  ,  1.5 , 10.01,  2.5 ]])
    """
    corners = np.round(np.asarray(box, np.float64), 2) + 0.0  # + 0 turns -0 into 0
    return np.hstack([corners[:, :2], np.round(corners[:, 2:] - corners[:, :2], 2)])


def annotation_lines(
    found: Detections,
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    weights: np.ndarray,
    teachers: Sequence[str],
    first: int,
    ignore: bool,
) -> list[str]:
    """One object of ``annotations`` for each detection.

    Args:
        image_ids, weights: (n,).
        category_ids: id of each unified category.
        teachers: their names.
        first: id of the first annotation.
        ignore: whether they are ignore boxes.
    """
    boxes, n = xywh(found.box), len(found)
    agreement = np.char.mod(', "box_agreement": %.4f', found.agreement.astype(np.float64))
    columns = (
        np.arange(first, first + n),
        image_ids,
        category_ids[found.category],
        *boxes.T,
        boxes[:, 2] * boxes[:, 3],
        found.score,
        weights,
        np.array([json.dumps(name) for name in teachers])[found.teacher],
        found.votes,
        np.where(np.isnan(found.agreement), "", agreement),
        np.full(n, int(ignore)),
    )
    return list(map(_ANNOTATION.__mod__, zip(*(x.tolist() for x in columns), strict=True)))


def result_lines(found: Detections, image_ids: np.ndarray, category_ids: np.ndarray) -> list[str]:
    """One object of COCO's list of results for each detection; arguments as above."""
    columns = (image_ids, category_ids[found.category], *xywh(found.box).T, found.score)
    return list(map(_RESULT.__mod__, zip(*(x.tolist() for x in columns), strict=True)))


def image_line(image: ImageRecord, height: int, width: int, covered: list[int] | None) -> str:
    """One object of ``images``; ``covered``: ids of the categories that were looked for, or all."""
    content = {"id": image.id, "file_name": image.name, "width": width, "height": height}
    content["source"] = image.source
    if covered is not None:
        content["covered_category_ids"] = covered
    return json.dumps(content)


class JsonList:
    """A list in a file of its own that grows; :meth:`close` ends it."""

    def __init__(self, path: Path):
        self._file = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
        self._file.write("[")
        self._between = "\n"

    def extend(self, lines: Sequence[str]) -> None:
        if lines:
            self._file.write(self._between + ",\n".join(lines))
            self._between = ",\n"

    def close(self) -> None:
        self._file.write("\n]")
        self._file.close()


class CocoFile:
    """A COCO file whose images and annotations wait in files beside it until it is closed.

    ``info`` stands on the first line, so that it can be read without the rest.
    """

    def __init__(self, path: Path, info: dict[str, Any], categories: list[dict[str, Any]]):
        self._path, self._head = path, {"info": info, "categories": categories}
        self._parts = {x: path.with_name(f".{path.name}.{x}") for x in ("images", "annotations")}
        self.images, self.annotations = (JsonList(x) for x in self._parts.values())

    def close(self) -> Path:
        self.images.close()
        self.annotations.close()
        with atomic_write(str(self._path)) as f:
            opening = "{"
            for key, value in self._head.items():
                f.write(f'{opening}"{key}": {json.dumps(value, sort_keys=True)}'.encode())
                opening = ",\n"
            for key, part in self._parts.items():
                f.write(f',\n"{key}": '.encode())
                with open(part, "rb") as source:
                    shutil.copyfileobj(source, f, 1 << 20)
                part.unlink()
            f.write(b"}\n")
        return self._path


def read_info(path: Path) -> dict[str, Any]:
    """``info`` of a file of :class:`CocoFile`.

    Raises:
        ValueError: it does not begin as such a file.
    """
    with open(path, "rb") as f:
        return json.loads(f.readline().rstrip().removesuffix(b",") + b"}")["info"]
