"""The built-in data sets on disk: generated at first use, then checked at each use.

`shapes` and `shapes_shifted` have the same classes, sizes and numbers of objects, and differ in
their look (see `shapes_look`).

A split is a folder `<root>/shapes_v<version>/<split>` with `images/`, `annotations.json` and
`manifest.json`. It is written beside and then renamed, so it is there whole or not at all.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .shapes_look import PLAIN, SHIFTED
from .shapes_outlines import polygon_area
from .shapes_render import CLASSES, SceneObject, render_scene

__all__ = [
    "IMAGE_SIDE",
    "DataSetError",
    "SEED",
    "SPLITS",
    "VERSION",
    "ensure_split",
    "is_labeled",
    "split_folder",
]

VERSION = 1  # raise it whenever a pixel or a number of the data set changes
SEED = 0
IMAGE_SIDE = 96
SPLITS = {
    "train": 2000,
    "val": 400,
    "unlabeled": 1000,
    "shifted_train": 2000,
    "shifted_val": 400,
    "shifted_unlabeled": 1000,
}
"""Split name -> number of images. The order is that of the random seeds and image ids."""

_SPLIT_CODES = {name: code for code, name in enumerate(SPLITS)}
_ZLIB_RLE = 3
_IDS_PER_SPLIT = 1_000_000  # image ids stay unique when splits are put together

logger = logging.getLogger(__name__)


class DataSetError(ValueError):
    """The built-in data cannot be written, or is damaged."""


def is_labeled(split: str) -> bool:
    """Whether a split tells what is on its images."""
    return not split.endswith("unlabeled")


def split_folder(root: str | os.PathLike, split: str, prefix: str = "shapes") -> Path:
    """Where a split lives under the data folder `root`."""
    return Path(root) / f"{prefix}_v{VERSION}" / split


def ensure_split(
    root: str | os.PathLike, split: str, *, num_images: int | None = None, prefix: str = "shapes"
) -> Path:
    """Generate a split unless it is there, and check that it is whole.

    Safe to call from several processes at once: one of them generates, all use the same folder.

    Args:
        root: data folder, usually DETECTRON2_DATASETS.
        split: a key of `SPLITS`.
        num_images: another size than the usual one.
        prefix: another name than `shapes`, so that sets of different sizes can share `root`.

    Returns:
        the split's folder.

    Raises:
        DataSetError: what is there is incomplete or changed, or nothing can be written there.
    """
    num_images = SPLITS[split] if num_images is None else num_images
    folder = split_folder(root, split, prefix)
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(folder.parent / f".{split}.lock") as alone:
                if alone:  # then whatever else is lying here was left by a killed process
                    for stale in folder.parent.glob(f".{split}.tmp-*"):
                        shutil.rmtree(stale, ignore_errors=True)
                if not folder.exists():
                    _generate(folder, split, num_images)
        except OSError as error:
            raise DataSetError(
                f"The built-in data set cannot be written to {folder} ({error}): make room "
                "or give write access, or set DETECTRON2_DATASETS to another one."
            ) from error
    _check(folder, split, num_images)
    return folder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock while several ranks start; yields False where files cannot be locked.

    It only saves work: without it, every process generates a copy and all but one discard theirs.
    """
    with open(path, "w") as handle:
        try:
            import fcntl  # not on Windows

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):
            alone = False
        else:
            alone = True
        yield alone


def _generate(folder: Path, split: str, num_images: int) -> None:
    """Write a split to a temporary sibling of `folder`, then rename it."""
    logger.info(f"Generating {num_images} images of the built-in data set in {folder} ...")
    temporary = folder.with_name(f".{split}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        (temporary / "images").mkdir(parents=True)
        labels = _draw_all(temporary, split, num_images)
        text = json.dumps(_coco(split, labels), sort_keys=True, separators=(",", ":"))
        (temporary / "annotations.json").write_text(text)
        manifest = {**_identity(split, num_images), **_contents(temporary)}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True))
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process was faster; its copy is as good as this one.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info(f"Generated {folder}.")


def _draw_all(folder: Path, split: str, num_images: int) -> list[list[dict]]:
    """Draw all images, half of them in a second process where there is a second core.

    Returns:
        for each image the COCO annotations of its objects, still without ids.
    """
    workers = 2 if num_images >= 100 and _can_fork() else 1
    # Forked like a data loader's worker; it hands its labels back in a file.
    helpers = [
        multiprocessing.get_context("fork").Process(
            target=_help_draw, args=(folder, split, range(first, num_images, workers), os.getpid())
        )
        for first in range(1, workers)
    ]
    try:
        for helper in helpers:
            helper.start()
        _draw(folder, split, range(0, num_images, workers), progress=sys.stderr.isatty())
        for helper in helpers:
            helper.join()
            if helper.exitcode:
                raise DataSetError(
                    f"A process that drew images for {folder.parent} ended with exit code "
                    f"{helper.exitcode}; it says why above."
                )
    finally:
        for helper in helpers:
            if helper.is_alive():
                helper.kill()
                helper.join()
    labels = {}
    for first in range(workers):
        part = folder / f"part-{first}.json"
        labels.update(json.loads(part.read_text()))
        part.unlink()
    return [labels[str(index)] for index in range(num_images)]


def _can_fork() -> bool:
    return (
        (os.cpu_count() or 1) > 1
        and "fork" in multiprocessing.get_all_start_methods()
        and not multiprocessing.current_process().daemon  # daemons may not have children
    )


def _help_draw(folder: Path, split: str, indices: range, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _draw(folder, split, indices, parent=parent)


def _draw(
    folder: Path, split: str, indices: range, progress: bool = False, parent: int | None = None
) -> None:
    """Write the images of these numbers, and their objects to `part-<first number>.json`."""
    labels = {}
    look = SHIFTED if split.startswith("shifted") else PLAIN
    for done, index in enumerate(indices, 1):
        if parent is not None and os.getppid() != parent:
            return  # killed: nobody waits for the rest
        rng = np.random.default_rng([VERSION, SEED, _SPLIT_CODES[split], index])
        image, objects = render_scene(rng, IMAGE_SIDE, look)
        # On noisy images deflate's run-length strategy is faster than the usual one, and no worse.
        path = folder / "images" / _file_name(split, index)
        Image.fromarray(image).save(path, compress_type=_ZLIB_RLE)
        labels[index] = [_annotation(thing) for thing in objects]
        if progress and (done % 20 == 0 or done == len(indices)):
            end = "\n" if done == len(indices) else ""
            sys.stderr.write(f"\rgenerating shapes ({split}): {100 * done // len(indices)} %{end}")
            sys.stderr.flush()
    (folder / f"part-{indices.start}.json").write_text(json.dumps(labels))


def _file_name(split: str, index: int) -> str:
    return f"{split}_{index:06d}.png"


def _annotation(thing: SceneObject) -> dict:
    low, high = thing.polygon.min(0), thing.polygon.max(0)
    return {
        "category_id": thing.category + 1,
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "segmentation": [thing.polygon.reshape(-1).tolist()],
        "area": round(polygon_area(thing.polygon), 2),
        "iscrowd": 0,
        "visibility": round(thing.visibility, 2),
    }


def _coco(split: str, labels: list[list[dict]]) -> dict:
    first_id = _SPLIT_CODES[split] * _IDS_PER_SPLIT + 1
    side = {"width": IMAGE_SIDE, "height": IMAGE_SIDE}
    coco = {
        "info": {"description": f"kd_d2 shapes, {split}", "version": str(VERSION)},
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)],
        "images": [
            {"id": first_id + index, "file_name": _file_name(split, index), **side}
            for index in range(len(labels))
        ],
    }
    if is_labeled(split):  # like COCO's own image lists without labels: no such key at all
        flat = [
            (first_id + index, thing) for index, things in enumerate(labels) for thing in things
        ]
        coco["annotations"] = [
            {"id": first_id + number, "image_id": image_id, **thing}
            for number, (image_id, thing) in enumerate(flat)
        ]
    return coco


def _identity(split: str, num_images: int) -> dict:
    return {"version": VERSION, "seed": SEED, "split": split, "num_images": num_images}


def _contents(folder: Path) -> dict:
    with os.scandir(folder / "images") as entries:
        sizes = [entry.stat().st_size for entry in entries]
    digest = hashlib.sha256((folder / "annotations.json").read_bytes()).hexdigest()
    return {"files": len(sizes), "image_bytes": sum(sizes), "annotations_sha256": digest}


def _check(folder: Path, split: str, num_images: int) -> None:
    """Refuse a split that is not as it was generated."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        found = {**_identity(split, num_images), **_contents(folder)}
    except (OSError, ValueError) as error:
        reason = str(error)
    else:
        wrong = [
            f"{k} is {found[k]}, not {manifest.get(k)}"
            for k in found
            if found[k] != manifest.get(k)
        ]
        if not wrong:
            return
        reason = "; ".join(wrong)
    raise DataSetError(
        f"The built-in data set in {folder} is incomplete or was changed ({reason}): delete that "
        "folder and it is generated again."
    )
