"""The images of a run: from registered data sets, lists in COCO's format, and folders."""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_d2.data.reading import read_dataset
from kd_d2.registry import unknown_name
from kd_d2.visualization.sources import IMAGE_SUFFIXES, spread

from .run_folder import ImageRecord, RunError, RunFolder

Source = tuple[str, list[ImageRecord]]
"""The folder that all of the images are below, and the images, sorted by name."""

logger = logging.getLogger(__name__)


class SourceError(ValueError):
    """Images that cannot be had, or must not be labelled; the message says what to do."""


def from_dataset(name: str) -> Source:
    """The images of a registered Detectron2 data set.

    Raises:
        SourceError: it is not registered, or it or its images are not there.
        ValueError: it cannot be read.
    """
    if name not in DatasetCatalog:
        raise SourceError(unknown_name("data set", name, DatasetCatalog.keys()))
    try:
        records = list(read_dataset(name))
    except OSError as error:
        raise SourceError(
            f"The data set '{name}' cannot be read: {error.strerror} ({error.filename}); put it "
            "there, or set DETECTRON2_DATASETS to the folder of the data sets."
        ) from error
    files = [r["file_name"] for r in records]
    folder = MetadataCatalog.get(name).get("image_root")
    return _list_of(files, [r.get("image_id") for r in records], name, folder)


def from_coco_list(json_file: str | Path, image_root: str | Path) -> Source:
    """The images of a file in COCO's format; it needs no annotations and no categories.

    Raises:
        SourceError: it or its images are not there, or it is no such file.
    """
    if not image_root or not Path(image_root).is_dir():
        raise SourceError(
            f"{json_file} needs the folder of its images (--image-root), and "
            f"{f'{image_root} is none' if image_root else 'none is given'}."
        )
    try:
        images = json.loads(Path(json_file).read_bytes())["images"]
        files = [os.path.join(image_root, image["file_name"]) for image in images]
        ids = [image.get("id") for image in images]
    except OSError as error:
        raise SourceError(f"{json_file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{json_file} has no list of images as COCO's files have it, with a file_name of each "
            f"({type(error).__name__}: {error})."
        ) from error
    return _list_of(files, ids, Path(json_file).name, image_root)


def from_folder(path: str | Path, leave_out: Sequence[str | Path] = ()) -> Source:
    """The images in a folder and its subfolders; hidden ones are left out.

    So are runs below it, whose check sheets are no images to be labelled.

    Args:
        leave_out: folders whose images are left out, too, such as that of the output.

    Raises:
        SourceError: there is no such folder, it has no images, or it is to be left out itself.
    """
    root = os.path.abspath(path)
    if not os.path.isdir(root):
        raise SourceError(f"There is no folder {path}.")
    places_of_ours = {_place(x) for x in leave_out if os.path.isdir(x)}
    files, visited, ours = [], set(), []
    for folder, below, names in os.walk(root, followlinks=True):
        place = _place(folder)
        if place in visited:  # by a link, which may lead in circles
            below.clear()
            continue
        visited.add(place)
        if place in places_of_ours or ("run.json" in names and _is_run(folder)):
            ours.append(folder)
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        files += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    if root in ours:
        raise SourceError(
            f"{path} is a folder of output, whose own pictures would be among the images: give one "
            "that holds images only, and another folder for the output."
        )
    if ours:
        logger.warning(
            f"Left out of the images of {path}: {', '.join(sorted(ours))}, with output of ours."
        )
    if not files:
        raise SourceError(f"The folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    return _list_of(files, [], os.path.basename(root), root)


def _place(folder: str | Path) -> tuple[int, int]:
    """The same for all paths and links that lead to a folder."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_run(folder: str) -> bool:
    try:
        RunFolder(folder)
    except (RunError, OSError):  # a run.json of another program
        return False
    return True


def from_names(
    names: Sequence[str], image_root: str = "", leave_out: Sequence[str | Path] = ()
) -> Source:
    """The images of data sets, folders and lists in COCO's format, together.

    Args:
        names: data sets, folders, FILE.json, and FILE.json,FOLDER, whose images are there.
        image_root: folder of the images of each FILE.json.
        leave_out: of folders, as of :func:`from_folder`.

    Raises:
        ValueError: one of them cannot be had.
    """
    return together([_from_name(name, image_root, leave_out) for name in names])


def _from_name(name: str, image_root: str, leave_out: Sequence[str | Path]) -> Source:
    if name in DatasetCatalog:
        return from_dataset(name)
    if os.path.isdir(name):
        return from_folder(name, leave_out)
    file, _, folder = name.partition(",")
    if file.endswith(".json"):
        return from_coco_list(file, folder or image_root)
    if os.sep in name:
        raise SourceError(f"There is no folder {name}.")
    known = unknown_name("data set", name, DatasetCatalog.keys())
    raise SourceError(f"{name} is no folder and no .json file. {known}")


def together(sources: Sequence[Source]) -> Source:
    """Several sources as one; an image file that several have is taken from the first of them.

    Names are relative to the folder that all have in common, and so begin with the source's. Where
    ids of two sources are equal, all images are numbered anew, from 1 in the order of their names.
    """
    if len(sources) == 1:
        return sources[0]
    images = {x.file_name: x for _, part in reversed(sources) for x in part}
    root = os.path.commonpath([root for root, _ in sources])
    records = [replace(x, name=_name(x.file_name, root)) for x in images.values()]
    records.sort(key=lambda x: x.name)
    if len({x.id for x in records}) < len(records):
        records = [replace(x, id=number) for number, x in enumerate(records, 1)]
    return root, records


def _list_of(files: Sequence[str], ids: list[Any], source: str, root: str | Path | None) -> Source:
    """Records of files; their ids, if these are unique numbers, else numbers from 1 on."""
    if not files:
        raise SourceError(f"{source} names no images.")
    files = [os.path.abspath(file) for file in files]
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise SourceError(f"{source} lists {twice[0]} more than once: list each image once.")
    if not any(map(os.path.exists, spread(files, 50))):
        raise SourceError(f"The images of {source} are not there, e.g. {files[0]}.")
    root = os.path.abspath(root or os.path.dirname(files[0]))
    if not all(file.startswith(os.path.join(root, "")) for file in files):
        root = os.path.commonpath([os.path.dirname(file) for file in files])
    names = [_name(file, root) for file in files]
    order = sorted(range(len(files)), key=names.__getitem__)
    whole = all(isinstance(x, Integral) and not isinstance(x, bool) for x in ids)
    if not ids or not whole or len(set(ids)) < len(ids):
        ids = dict(zip(order, range(1, len(files) + 1), strict=True))
    return root, [ImageRecord(files[i], names[i], int(ids[i]), source) for i in order]


def _name(file: str, root: str) -> str:
    """
    >>> _name("/data/coco/val2017/1.jpg", "/data/coco")
    'val2017/1.jpg'
    """
    name = os.path.relpath(file, root).replace(os.sep, "/")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(f"The name of {file!r} is no UTF-8: rename it.") from None
    return name
