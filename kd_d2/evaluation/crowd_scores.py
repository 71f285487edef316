"""AP, MR^-2 and JI of one class, image by image, so that no overlaps pile up in memory."""

import numpy as np

from .crowd_matching import DROPPED, TRUE_POSITIVE, ImageOverlaps, match_detections
from .jaccard_index import SCORE_THRESHOLDS, image_jaccard, jaccard_index
from .miss_rate import average_precision, detection_curve, log_average_miss_rate

__all__ = ["CrowdScores"]


class CrowdScores:
    """Collects what the three metrics of CrowdHuman need of each image.

    Attributes:
        num_objects: there were so far.
    """

    def __init__(self):
        self.num_objects = 0
        self._scores, self._correct = [], []
        self._ratios = np.zeros(len(SCORE_THRESHOLDS))
        self._counted = np.zeros(len(SCORE_THRESHOLDS), dtype=int)

    def add(self, image: ImageOverlaps, unfindable: int = 0) -> None:
        """Take in an image; those without objects and detections may be left out.

        Args:
            unfindable: objects without area, which AP and MR count as missed and JI does not know.
        """
        self.num_objects += image.iou.shape[1] + unfindable
        kinds = match_detections(image)
        counts = kinds != DROPPED
        self._scores.append(image.scores[counts])
        self._correct.append(kinds[counts] == TRUE_POSITIVE)
        ratio, has_any = image_jaccard(image)
        self._ratios += ratio
        self._counted += has_any

    def result(self, num_images: int) -> dict[str, float]:
        """AP and JI (higher is better) and MR (lower is), all as fractions.

        Args:
            num_images: of the data set, those that were left out included.

        Returns:
            NaN where there was no object.
        """
        if not self.num_objects:
            return dict.fromkeys(("AP", "MR", "JI"), float("nan"))
        curve = detection_curve(
            np.concatenate(self._scores),
            np.concatenate(self._correct),
            self.num_objects,
            num_images,
        )
        return {
            "AP": average_precision(curve),
            "MR": log_average_miss_rate(curve),
            "JI": jaccard_index(self._ratios, self._counted),
        }
