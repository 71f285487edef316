"""What FCOS and AutoAssign share: a point a cell, from which the sides of a box are so far away.

Shapes: N images, R points of all levels together, R_l of level l, K classes.
"""

import torch
from detectron2.layers import cat
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.detectors.fcos_targets import boxes_around
from kd_d2.modeling.detectors.one_per_cell import OnePerCellDetector

SCORES = ("sqrt", "product")
CANDIDATES = ("pairs", "points")


class OnePointDetector(OnePerCellDetector):
    """Its head returns logits, distances in pixels, and logits of a third number that weighs them.

    Subclasses have ``losses``.
    """

    needs_points_inside = True

    def __init__(
        self,
        *,
        point_offset: float = 0.5,
        score: str = "sqrt",
        candidates_test: str = "pairs",
        **common,
    ):
        """
        Args:
            point_offset: where the points are, in strides from the cells' upper left corners.
            score: of a detection: "sqrt" of class probability times the third number, or "product".
            candidates_test: "pairs" of a point and a class, by the class's probability; or all
                classes of the best "points", by the product of their best class, with boxes that
                are clipped to the image before NMS.
            common: arguments of :class:`OnePerCellDetector`.

        Raises:
            ValueError: an unknown score or kind of candidate.
        """
        super().__init__(**common)
        for value, key, options in (
            (score, "SCORE", SCORES),
            (candidates_test, "CANDIDATES_TEST", CANDIDATES),
        ):
            if value not in options:
                raise ValueError(f"{key} is {value!r}: it must be one of {', '.join(options)}.")
        self.score = score
        self.candidates_test = candidates_test
        strides = self.strides()
        # A point is represented as the square of one stride around it.
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[s] for s in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=point_offset,
        )

    def locations(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Points (R, 2) of all levels, and the strides (R,) of their levels."""
        anchors = self.anchor_generator(features)
        return Boxes.cat(anchors).get_centers(), cat(self.strides_of(anchors))

    def decode_predictions(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor], list[Tensor]],
    ) -> DensePredictions:
        """The head's ``predictions`` in the words of all dense detectors; every point is valid."""
        points, strides = self.locations(features)
        logits, distances, third = (
            cat(x, dim=1)
            for x in self._transpose_dense_predictions(predictions, self.outputs_per_cell())
        )
        return DensePredictions(
            logits=logits,
            boxes=boxes_around(points, distances.float()),
            points=points,
            strides=strides,
            valid=torch.ones_like(logits[..., 0], dtype=torch.bool),
            sizes=[tuple(x.shape[-2:]) for x in features],
            quality=third.squeeze(-1),
        )

    def forward_inference(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: tuple[list[Tensor], list[Tensor], list[Tensor]],
    ) -> list[Instances]:
        """Detections of each image in network input coordinates; leaves ``predictions`` alone."""
        per_level = zip(
            self.anchor_generator(features),
            *self._transpose_dense_predictions(predictions, self.outputs_per_cell()),
            strict=True,
        )
        # list over levels of (centres (R_l, 2), (N, R_l, K), (N, R_l, 4), (N, R_l))
        levels = [
            (a.get_centers(), x.float().sigmoid(), d.float(), t.float().sigmoid().squeeze(-1))
            for a, x, d, t in per_level
        ]
        results = []
        for i, image_size in enumerate(images.image_sizes):
            candidates = [
                self._candidates(image_size, p, s[i], d[i], t[i]) for p, s, d, t in levels
            ]
            results.append(self.best_detections(image_size, candidates))
        return results

    def _candidates(
        self,
        image_size: tuple[int, int],
        points: Tensor,
        probabilities: Tensor,
        distances: Tensor,
        third: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (k, 4), scores (k,) and classes (k,) of the best candidates of a level of an image.

        The threshold is on the class probability alone; only the rank in NMS sees both numbers.
        """
        number = min(self.test_topk_candidates, len(points))
        if self.candidates_test == "pairs":
            best, index = probabilities.flatten().topk(number)
            index = index[best > self.test_score_thresh]
            point = torch.div(index, self.num_classes, rounding_mode="floor")
            classes = index % self.num_classes
        else:
            chosen = (probabilities.amax(1) * third).topk(number).indices
            row, classes = (probabilities[chosen] > self.test_score_thresh).nonzero(as_tuple=True)
            point = chosen[row]
        boxes = Boxes(boxes_around(points[point], distances[point]))
        if self.candidates_test == "points":
            boxes.clip(image_size)
        scores = probabilities[point, classes] * third[point]
        return boxes.tensor, scores.sqrt() if self.score == "sqrt" else scores, classes
