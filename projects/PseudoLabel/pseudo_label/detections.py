"""What detectors found in many images, as flat arrays.

Symbols: n detections.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

_DTYPES = {
    "image": np.int32,
    "box": np.float32,
    "score": np.float32,
    "category": np.int16,
    "teacher": np.int16,
    "votes": np.int16,
    "agreement": np.float32,
}


@dataclass
class Detections:
    """Detections in the order of their images; those of an image in no particular order.

    Attributes:
        image: (n,) int32, numbers of the images in the run's list.
        box: (n, 4) float32, x0, y0, x1, y1 in pixels of the original image.
        score: (n,) float32 in [0, 1].
        category: (n,) int16: the teacher's own number of the class, or after merging the number of
            the unified class, both from 0.
        teacher: (n,) int16, number of the teacher that found it; after merging, the one whose box
            or score counted most.
        votes: (n,) int16, how many teachers found it.
        agreement: (n,) float32, largest IoU with a detection of the same class in the mirrored
            image; nan where that was not looked at.
    """

    image: np.ndarray
    box: np.ndarray
    score: np.ndarray
    category: np.ndarray
    teacher: np.ndarray
    votes: np.ndarray
    agreement: np.ndarray

    def __post_init__(self):
        for name, dtype in _DTYPES.items():
            value = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            setattr(self, name, value.reshape(-1, 4) if name == "box" else value)
        if len({len(getattr(self, name)) for name in _DTYPES}) > 1:
            raise ValueError("The arrays of Detections have different lengths.")

    @classmethod
    def make(cls, image, box, score, category, teacher=0, votes=1, agreement=np.nan):
        """Of arrays or lists; single numbers stand for all detections."""
        n = len(np.asarray(score))
        rest = (np.broadcast_to(np.asarray(x), (n,)) for x in (image, category, teacher))
        image, category, teacher = rest
        votes, agreement = (np.broadcast_to(np.asarray(x), (n,)) for x in (votes, agreement))
        return cls(image, np.asarray(box), np.asarray(score), category, teacher, votes, agreement)

    @classmethod
    def empty(cls) -> "Detections":
        return cls.make([], np.zeros((0, 4)), [], [])

    @classmethod
    def concatenate(cls, parts: Iterable["Detections"]) -> "Detections":
        """One after the other; empty if there are none."""
        parts = list(parts) or [cls.empty()]
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, chosen) -> "Detections":
        """Those of a mask, of indices or of a slice."""
        return Detections(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Name -> array, as they are stored."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def by_image(self) -> "Detections":
        """Sorted by image, then by falling score; equal ones stay in order."""
        return self[np.lexsort((-self.score, self.image))]
