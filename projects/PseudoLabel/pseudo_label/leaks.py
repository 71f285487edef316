"""Whether images of test sets are among those that teachers are to label."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageOps

from kd_d2.checkpoint import file_sha256

from .run_folder import ImageRecord
from .sources import SourceError, from_dataset

_SIDE = 16  # of the small pictures that are compared
_ALIKE = 0.1  # of the contrast; a JPEG at quality 50 differs by less, another picture by far more


def check_no_leak(images: Sequence[ImageRecord], datasets: Iterable[str]) -> None:
    """Checks that no image of test sets is to be labelled, under whatever name.

    Files are compared by their contents; only those of equal size are read. An image that was saved
    again has other contents, so those of equal names, whatever their folders and suffixes, are
    compared by what they show, too. Equal names alone say nothing, as many data sets have a
    000001.jpg; and names that a list has more than once, as of frames of videos, are passed over.

    Raises:
        SourceError: one is, or a test set or its images are not there.
        ValueError: a test set cannot be read.
    """
    for name in datasets:
        test_set, counts = _TestSet(name), Counter(_stem(x.file_name) for x in images)
        leaks = [x.name for x in images if test_set.has_contents(x.file_name)]
        if leaks:
            raise SourceError(
                f"{len(leaks)} of the {len(images)} images are in the test set '{name}' "
                f"({_some(leaks)}): leave them out."
            )
        named = [x for x in images if counts[_stem(x.file_name)] == 1]
        leaks = [x.name for x in named if test_set.has_picture(x.file_name)]
        if leaks:
            raise SourceError(
                f"{len(leaks)} of the {len(images)} images show what those of the same name in the "
                f"test set '{name}' show ({_some(leaks)}): leave them out, or rename them if they "
                "are others."
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _stem(file: str) -> str:
    """
    >>> _stem("/data/val/000001.jpg")
    '000001'
    """
    return os.path.splitext(os.path.basename(file))[0]


class _TestSet:
    """The files of a data set by size and by name; they are read when they are needed."""

    def __init__(self, name: str):
        self._by_size: dict[int, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._hashes: dict[int, set[str]] = {}
        for image in from_dataset(name)[1]:
            try:
                self._by_size[os.path.getsize(image.file_name)].append(image.file_name)
            except OSError as error:
                raise SourceError(
                    f"{image.file_name} of the test set '{name}' is not there ({error.strerror}), "
                    "so that nobody can say whether it is among the images."
                ) from error
            self._by_stem[_stem(image.file_name)].append(image.file_name)

    def has_contents(self, file: str) -> bool:
        try:
            size = os.path.getsize(file)
            if size not in self._by_size:
                return False
            if size not in self._hashes:
                self._hashes[size] = {file_sha256(other) for other in self._by_size[size]}
            return file_sha256(file) in self._hashes[size]
        except OSError:  # reading will fail and be told
            return False

    def has_picture(self, file: str) -> bool:
        """Whether the only file of the same name shows the same."""
        others = self._by_stem.get(_stem(file), ())
        if len(others) != 1:
            return False
        pair = [_small_picture(x) for x in (file, *others)]
        return all(x is not None for x in pair) and _are_alike(*pair)


def _small_picture(file: str) -> np.ndarray | None:
    """(_SIDE, _SIDE) means of the grey values, as its EXIF turns it; None: it cannot be read."""
    try:
        with Image.open(file) as image:
            turned = ImageOps.exif_transpose(image)
            # more than 8 bits would be clipped on the way to "L"
            grey = turned if turned.mode[0] in "IF" else turned.convert("L")
            return np.asarray(grey.convert("F").resize((_SIDE, _SIDE), Image.Resampling.BOX))
    except Exception:  # PIL's plugins raise what they like; the reader tells
        return None


def _are_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether no part differs by much; a picture of one colour is like no other.

    >>> a = np.arange(256.0).reshape(16, 16)  # its contrast is 74
    >>> _are_alike(a, a + 5), _are_alike(a, a + 9), _are_alike(a[:1] * 0, a[:1] * 0)
    (True, False, False)
    """
    return bool(np.abs(a - b).max() < _ALIKE * a.std())
