"""What a dense detector predicts, in the same words for all of them.

Shapes: N images, L levels, A locations of all levels together (fine to coarse, row by row, the
anchors of a cell side by side), K classes.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class DensePredictions:
    """Logits and boxes of all locations of a batch; see ``DetectorStages.decode``.

    Attributes:
        logits: (N, A, K) class logits before the sigmoid, without centerness, objectness or IoU.
        boxes: (N, A, 4) in pixels of the network's input, not clipped.
        points: (A, 2) x, y in pixels: the centre of a location's cell or of its anchor.
        strides: (A,) of a location's level.
        valid: (N, A); False for locations that the detector neither trains nor detects with,
            since their image would not have them in a batch of its own.
        sizes: height and width of each level, in cells.
        quality: (N, A) logits of the number that a detection's score is multiplied by, of the box's
            IoU or centerness; None for a detector without.
        per_cell: locations of a cell; more than one for a detector with several anchors.
    """

    logits: Tensor
    boxes: Tensor
    points: Tensor
    strides: Tensor
    valid: Tensor
    sizes: list[tuple[int, int]]
    quality: Tensor | None = None
    per_cell: int = 1

    def split_levels(self, values: Tensor, dim: int = 1) -> list[Tensor]:
        """Values of all locations, e.g. (N, A), as a list over the levels."""
        return list(values.split([h * w * self.per_cell for h, w in self.sizes], dim))
