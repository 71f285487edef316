"""What trainings make of labels that weigh differently, and of what nobody is sure of.

Symbols: N images, M objects of an image, R anchors of all levels together, R_l of level l, K
classes.
"""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .covered import COVERED, covered_classes, hide_background
from .matching import (
    BOX_WEIGHTS,
    CLS_WEIGHTS,
    has_weights,
    on_uncertain,
    weights_of,
    weights_of_nearest,
)


@dataclass(frozen=True)
class LabelWeights:
    """See the config node ``MODEL.LABEL_WEIGHTS``."""

    use_weights: bool = True
    normalize: str = "count"
    use_ignore: bool = False
    overlap: float = 0.5
    use_covered: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "LabelWeights | None":
        """None if all labels are to count alike, all of them, and all background."""
        node = cfg.MODEL.LABEL_WEIGHTS
        weights = node.ENABLED or node.BOX_LOSS != "all"
        if not (weights or node.IGNORE or node.COVERED):
            return None
        return cls(weights, node.NORMALIZE, node.IGNORE, node.IGNORE_OVERLAP, node.COVERED)

    def leave_out(
        self, labels: list[Tensor], boxes: Tensor, background: int, gt: list[Instances]
    ) -> list[Tensor]:
        """Labels (R,) of each image in which background on what may be an object is ignored, -1.

        Args:
            boxes: (R, 4) of the anchors.
            background: its label.
        """
        if not self.use_ignore:
            return labels
        return [
            x.masked_fill((x == background) & on_uncertain(boxes, y, self.overlap), -1)
            for x, y in zip(labels, gt, strict=True)
        ]

    def covered(self, gt: list[Instances], num_classes: int) -> Tensor | None:
        """Which classes (N, K) were looked for on each image; None if no image says."""
        if not self.use_covered or not any(x.has(COVERED) for x in gt):
            return None
        return torch.stack([covered_classes(x, num_classes) for x in gt])

    def hide_uncovered(
        self, logits: list[Tensor], labels: list[Tensor], gt: list[Instances]
    ) -> list[Tensor]:
        """Logits that teach background no class that was not looked for on its image.

        Args:
            logits: (N, R_l, K) of each level.
            labels: (R,) of each image; the background is K.
        """
        covered = self.covered(gt, logits[0].shape[-1])
        if covered is None:
            return logits
        background = torch.stack(labels) == covered.shape[1]
        by_level = background.split([x.shape[1] for x in logits], dim=1)
        pairs = zip(logits, by_level, strict=True)
        return [hide_background(x, y, covered[:, None]) for x, y in pairs]

    def of_anchors(
        self,
        labels: list[Tensor],
        gt_boxes: list[Tensor],
        positive: Tensor,
        gt: list[Instances],
        classes: bool = True,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """Factors (N, R) of the losses of classes and of boxes; None if all count alike.

        Args:
            labels, gt_boxes: of each image, (R,) and (R, 4), as ``label_anchors`` returns them.
            positive: (N, R).
            classes: whether labels tell classes apart.
            counted: (N, R), over which the weights of classes are summed to normalise them; None:
                over the positives, by whose number dense detectors divide.
        """
        if not (self.use_weights and has_weights(gt)):
            return None
        pairs = [
            weights_of(b, x if classes else None, p, y)
            for x, b, p, y in zip(labels, gt_boxes, positive, gt, strict=True)
        ]
        of_class, of_box = (torch.stack(x) for x in zip(*pairs, strict=True))
        counted = positive if counted is None else counted
        return self.normalised(of_class, counted), self.normalised(of_box, positive)

    def of_objects(
        self, boxes: Tensor, gt: list[Instances]
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """For detectors that give no anchor a label, and have one loss of classes and boxes.

        Args:
            boxes: (R, 4) of the anchors.

        Returns:
            factors (N, M), padded, of the losses of the objects, and inside of these of what their
            boxes cost, or None if all count alike; which anchors (N, R) count as background, or
            None. The second factor of a box that weighs what its object does is 1, as the first
            one has its weight already.
        """
        weights = counted = None
        if self.use_weights and has_weights(gt):
            of_object, of_box = (
                pad_sequence([*(x.get(key) for x in gt), boxes.new_zeros(1)], True)[:-1]
                for key in (CLS_WEIGHTS, BOX_WEIGHTS)
            )
            of_box = (of_box / of_object).where(of_object > 0, 1.0)
            everything = torch.ones_like(of_object, dtype=torch.bool)  # the padding weighs 0
            count = sum(len(x) for x in gt)
            weights = self.normalised(of_object, everything, count), of_box
        if self.use_ignore:
            uncertain = [on_uncertain(boxes, x, self.overlap) for x in gt]
            counted = ~torch.stack(uncertain)
        return weights, counted

    def of_nearest(
        self, anchors: Tensor, labels: list[Tensor], positive: Tensor, gt: list[Instances]
    ) -> Tensor:
        """Factors (N, R) of the losses of classes, where it is not known which boxes are learned.

        Args:
            anchors: (R, 4).
            labels, positive: as of :meth:`of_anchors`.
        """
        pairs = zip(labels, positive, gt, strict=True)
        weights = torch.stack([weights_of_nearest(anchors, x, p, y) for x, p, y in pairs])
        return self.normalised(weights, positive)

    def normalised(self, weights: Tensor, counted: Tensor, count: int | None = None) -> Tensor:
        """The weights, or in proportion to them factors whose sum over the counted is ``count``.

        So losses that are divided by that number are divided by the sum of the weights instead.

        Args:
            weights, counted: equal shapes.
            count: what the losses are divided by, if that is not the number of the counted.
        """
        if self.normalize == "count":
            return weights
        count = counted.sum() if count is None else count
        total = weights.where(counted, 0.0).sum()
        return weights * (count / total.clamp(min=1e-6)).where(total > 0, 1.0)
