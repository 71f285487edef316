"""Reads images as a teacher is to see them, or says why one cannot be read.

Symbols: C channels; H, W height and width of an image turned as its EXIF says; h, w when resized.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy, read_image
from PIL import Image, ImageOps, UnidentifiedImageError

from .run_folder import ImageRecord

MAX_PIXELS = 50_000_000

_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # old versions of PIL open such PNGs as "I"


class ImageReader:
    """Maps records to what a teacher's detector gets at test time.

    Args:
        cfg: the teacher's: the format of its images, and the size to which they are brought.
        max_pixels: larger images are not read.
        sizes: shorter sides to which each image is brought besides the test size.
    """

    def __init__(self, cfg: CfgNode, max_pixels: int = MAX_PIXELS, sizes: Sequence[int] = ()):
        self._resize = T.AugmentationList(build_augmentation(cfg, is_train=False))
        self._resizes = {size: _resize_to(size, cfg) for size in sizes}
        self._format = cfg.INPUT.FORMAT
        self._max_pixels = max_pixels

    def __call__(self, record: ImageRecord) -> dict[str, Any]:
        """
        Returns:
            ``image`` (C, h, w), ``height`` H and ``width`` W, and if there are other sizes
            ``views``, shorter side -> (C, h, w); or ``error``, why it cannot be read.
        """
        try:
            image = self._read(record.file_name)
            height, width = image.shape[:2]
            found = {"image": _resized(image, self._resize), "height": height, "width": width}
            if self._resizes:
                found["views"] = {size: _resized(image, x) for size, x in self._resizes.items()}
        except Exception as error:  # PIL's plugins raise what they like
            return {"error": _reason(error, record)}
        return found

    def _read(self, file: str) -> np.ndarray:
        """(H, W, C)."""
        with _no_limit_of_pil(), Image.open(file) as image:
            if image.width * image.height > self._max_pixels:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than {self._max_pixels}"
                )
            if image.mode == "F":
                raise ValueError("pixels of floating-point numbers, whose range nobody knows")
            if image.mode in _SIXTEEN_BIT:
                return convert_PIL_to_numpy(
                    _eight_bit(ImageOps.exif_transpose(image)), self._format
                )
            return read_image(file, self._format)


def _resize_to(size: int, cfg: CfgNode) -> T.AugmentationList:
    """The teacher's test resize to another shorter side.

    The limit of the longer side grows in proportion. Detectron2's TTA has one limit for all sizes,
    but a high one; that of the test size would make larger views of most images the same.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.INPUT.MIN_SIZE_TEST:  # 0: images keep their size
        cfg.INPUT.MAX_SIZE_TEST = round(cfg.INPUT.MAX_SIZE_TEST * size / cfg.INPUT.MIN_SIZE_TEST)
    cfg.INPUT.MIN_SIZE_TEST = size
    return T.AugmentationList(build_augmentation(cfg, is_train=False))


def _resized(image: np.ndarray, resize: T.AugmentationList) -> torch.Tensor:
    """(H, W, C) -> (C, h, w)."""
    resized = T.AugInput(image)
    resize(resized)
    return torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits, whose bright parts PIL's own conversion would clip.

    >>> _eight_bit(Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))).tobytes().hex()
    '000180ff'
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("pixels of 32 bits, whose range nobody knows")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


@contextmanager
def _no_limit_of_pil() -> Iterator[None]:
    """PIL warns or raises at sizes of its own choice, but only this module's limit is to count."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _reason(error: Exception, record: ImageRecord) -> str:
    """The same on every machine, wherever the images lie there."""
    if isinstance(error, UnidentifiedImageError):
        if not os.path.getsize(record.file_name):
            return "the file is empty"
        return "no image of a format that PIL knows, or its beginning is damaged"
    if isinstance(error, OSError) and error.errno:
        return f"the file cannot be opened: {error.strerror}"
    text = str(error).replace(record.file_name, record.name).partition("\n")[0]
    return text or type(error).__name__
