"""What ATSS and its successors share: one square anchor a cell, and who learns what by statistics.

Shapes: N images, R anchors of all levels together, R_l of level l, K classes, E numbers that encode
a box.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import cat
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.detectors.atss_targets import centres_of, match_anchors
from kd_d2.modeling.detectors.fcos_targets import pad_objects
from kd_d2.modeling.detectors.one_per_cell import OnePerCellDetector, add_common_keys


def add_anchor_keys(node: CfgNode) -> None:
    """Add to the node of a detector the keys of its anchors, besides :func:`add_common_keys`."""
    add_common_keys(node)
    # Side of the one square anchor of a cell, in strides of its level.
    node.ANCHOR_SCALE = 8.0
    # Where the anchors' centres are, in strides from the cells' upper left corners.
    node.ANCHOR_OFFSET = 0.0
    # Candidates of an object: on each level the anchors whose centres are nearest to its own, of
    # PAA those of the least cost; of DDOD the anchors, of all levels jointly, of the highest
    # quality.
    node.TOPK = 9


def add_delta_keys(node: CfgNode) -> None:
    """Add the keys of boxes as deltas from anchors, and of the focal loss."""
    # Weights of (dx, dy, dw, dh) in the box output, as in RetinaNet: the inverse of its deviations.
    node.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # Parameters of the focal loss.
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0


class OneSquareAnchorDetector(OnePerCellDetector):
    """Subclasses have ``losses`` and ``decode_boxes``.

    With a third output, its sigmoid multiplies the scores of the detections. Candidates are chosen
    by class probability alone, if :meth:`choosing_scores` does not say otherwise.
    """

    def __init__(
        self,
        *,
        anchor_scale: float = 8.0,
        anchor_offset: float = 0.0,
        topk: int = 9,
        **common,
    ):
        """
        Args:
            common: arguments of :class:`OnePerCellDetector`.

        The other arguments are explained at the config keys of the detectors.
        """
        super().__init__(**common)
        strides = self.strides()
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[anchor_scale * s] for s in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=anchor_offset,
        )
        self.topk = topk

    @staticmethod
    def common_settings(cfg: CfgNode, node: CfgNode, head: type[nn.Module]) -> dict:
        """See :meth:`OnePerCellDetector.common_settings`."""
        return {
            **OnePerCellDetector.common_settings(cfg, node, head),
            "anchor_scale": node.ANCHOR_SCALE,
            "anchor_offset": node.ANCHOR_OFFSET,
            "topk": node.TOPK,
        }

    def decode_boxes(self, encoded: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
        """Boxes (..., R, 4) in pixels, not clipped.

        Args:
            encoded: (..., R, E), the head's.
            anchors, strides: (R, 4) and (R,), the strides those of the anchors' levels.
        """
        raise NotImplementedError

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Which object each anchor learns, for all objects of all images at once.

        Args:
            anchors: of each level.

        Returns:
            list[Tensor]: labels (R,) of each image; the background is ``num_classes``, and -1 an
                anchor outside the image that is ignored, see :meth:`valid_anchors`.
            list[Tensor]: boxes (R, 4) that the anchors learn; arbitrary for the others.
        """
        boxes, classes = pad_objects(gt_instances)
        valid = self.valid_anchors(anchors, [x.image_size for x in gt_instances])
        index, matched = match_anchors([a.tensor for a in anchors], valid, boxes, self.topk)
        labels, matched_boxes = self.labels_and_boxes(index, matched, boxes, classes)
        labels = labels.where(cat(valid, dim=1), -1)
        return list(labels), list(matched_boxes)

    def valid_anchors(
        self, anchors: list[Boxes], image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """Which anchors an image would have in a batch of its own: the others see only padding.

        Args:
            anchors: of each level.
            image_sizes: height and width of each image, without padding.

        Returns:
            list[Tensor]: (N, R_l) of each level.
        """
        unit = max(self.backbone.size_divisibility, 1)
        padded = [[-(-side // unit) * unit for side in (w, h)] for h, w in image_sizes]
        limits = torch.tensor(padded)[:, None].to(self.device, non_blocking=True)  # (N, 1, 2)
        generator = self.anchor_generator
        return [
            (a.get_centers() - generator.offset * stride < limits).all(-1)
            for a, stride in zip(anchors, generator.strides, strict=True)
        ]

    def decode_predictions(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> DensePredictions:
        """The head's ``predictions`` in the words of all dense detectors."""
        anchors = self.anchor_generator(features)
        logits, encoded, *third = self._transpose_dense_predictions(
            predictions, self.outputs_per_cell()
        )
        squares, strides = Boxes.cat(anchors).tensor, cat(self.strides_of(anchors))
        return DensePredictions(
            logits=cat(logits, dim=1),
            boxes=self.decode_boxes(cat(encoded, dim=1).float(), squares, strides),
            points=centres_of(squares),
            strides=strides,
            valid=cat(self.valid_anchors(anchors, images.image_sizes), dim=1),
            sizes=[tuple(x.shape[-2:]) for x in features],
            quality=cat(third[0], dim=1).squeeze(-1) if third else None,
        )

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: tuple[list[Tensor], ...]
    ) -> list[Instances]:
        """Detections of each image in network input coordinates; leaves ``predictions`` alone."""
        anchors = self.anchor_generator(features)
        logits, encoded, *third = self._transpose_dense_predictions(
            predictions, self.outputs_per_cell()
        )
        quality = third[0] if third else [None] * len(anchors)
        # No detection in the padding, so that an image's do not depend on the rest of the batch.
        valid = self.valid_anchors(anchors, images.image_sizes)
        probabilities = [
            x.float().sigmoid().where(v[..., None], 0.0) for x, v in zip(logits, valid, strict=True)
        ]
        levels = list(
            zip(anchors, self.strides_of(anchors), probabilities, encoded, quality, strict=True)
        )
        results = []
        for i, image_size in enumerate(images.image_sizes):
            candidates = [
                self._candidates(image_size, a.tensor, s, p[i], e[i], None if q is None else q[i])
                for a, s, p, e, q in levels
            ]
            results.append(self.best_detections(image_size, candidates))
        return results

    def choosing_scores(
        self, probabilities: Tensor, quality: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The scores by which candidates are chosen, and what multiplies them afterwards.

        Args:
            probabilities: (R_l, K).
            quality: logits (R_l, 1) of the third output; None without one.

        Returns:
            (R_l, K), and factors (R_l, 1) or None.
        """
        return probabilities, None if quality is None else quality.float().sigmoid()

    def _candidates(
        self,
        image_size: tuple[int, int],
        anchors: Tensor,
        strides: Tensor,
        probabilities: Tensor,
        encoded: Tensor,
        quality: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (k, 4), scores (k,) and classes (k,) of the best candidates of a level of an image.

        Args:
            anchors, strides, probabilities, encoded: (R_l, 4), (R_l,), (R_l, K), (R_l, E).
            quality: logits (R_l, 1) of the third output; None without one.
        """
        scores, factors = self.choosing_scores(probabilities, quality)
        num_anchors = min(self.test_topk_candidates, len(anchors))
        _, best = scores.amax(1).topk(num_anchors)
        row, classes = (scores[best] > self.test_score_thresh).nonzero(as_tuple=True)
        index = best[row]
        boxes = Boxes(self.decode_boxes(encoded[index].float(), anchors[index], strides[index]))
        boxes.clip(image_size)
        scores = scores[index, classes]
        if factors is not None:
            scores = scores * factors[index, 0]
        return boxes.tensor, scores, classes
