"""What is known of regions, and what one detector sees in them.

Shapes: R regions of all images of a batch, image by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes
from torch import Tensor


@dataclass
class Regions:
    """Boxes of a batch that two detectors look at.

    Attributes:
        boxes: (R, 4) in pixels of the network's input; constants.
        counts: regions of each image; they sum up to R.
        foreground: (R,) bool, those that overlap an object as much as a positive sample does.
        locations: (R,) number of the student's location (see ``DensePredictions``) that predicted
            the box, -1 for a box that none predicted. None: no location predicts boxes here.
    """

    boxes: Tensor
    counts: list[int]
    foreground: Tensor
    locations: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def images(self) -> Tensor:
        """(R,) number of the image of each region."""
        device = self.boxes.device
        counts = torch.tensor(self.counts, device=device)
        numbers = torch.arange(len(self.counts), device=device)
        return numbers.repeat_interleave(counts, output_size=len(self))

    def per_image(self) -> list[Boxes]:
        """The boxes as Detectron2's poolers want them."""
        return [Boxes(x) for x in self.boxes.split(self.counts)]

    def rois(self) -> Tensor:
        """(R, 5), number of the image and box, as RoIAlign wants them."""
        return torch.cat((self.images[:, None].to(self.boxes), self.boxes), 1)

    def take(self, index: Tensor) -> "Regions":
        """Those of an index, a tensor on the CPU in rising order."""
        counts = torch.tensor(self.counts)
        images = torch.arange(len(counts)).repeat_interleave(counts)[index]
        index = index.to(self.boxes.device)
        return Regions(
            self.boxes[index],
            images.bincount(minlength=len(counts)).tolist(),
            self.foreground[index],
            None if self.locations is None else self.locations[index],
        )

    def of_foreground(self) -> "Regions":
        """Those of the foreground alone."""
        return self.take(self.foreground.nonzero()[:, 0].cpu())

    @classmethod
    def of_images(
        cls,
        boxes: Sequence[Tensor],
        foreground: Sequence[Tensor],
        locations: Sequence[Tensor] | None = None,
    ) -> "Regions":
        """From boxes (R_i, 4) and so on of each image."""
        return cls(
            boxes=torch.cat(list(boxes)).detach(),
            counts=[len(x) for x in boxes],
            foreground=torch.cat(list(foreground)),
            locations=None if locations is None else torch.cat(list(locations)),
        )


@dataclass
class SeenRegions:
    """What a detector sees in regions; what nobody asked for, or it has not, is None.

    Attributes:
        regions: which they are.
        pooled: (R, C, h, w), its features there, each from the one level that the detector would
            take for a box of that size.
        strides: (R,) of these levels.
        vectors: (R, D). A two-stage detector's are the outputs of the last fully connected layer
            of its box head, before the activation. A dense detector's are the outputs of its
            classification tower in the cell that predicted the region; arbitrary without one.
        anchors: (R,) number of the anchor in its cell, of a dense detector.
        logits: (R, K + 1) class logits, background last.
        deltas: (R, K, 4), or (R, 1, 4) for a detector with one box for all classes; in units of
            its box regression.
        classes: the detector's number of each of the student's classes; None: the same.
    """

    regions: Regions
    pooled: Tensor | None = None
    strides: Tensor | None = None
    vectors: Tensor | None = None
    anchors: Tensor | None = None
    logits: Tensor | None = None
    deltas: Tensor | None = None
    classes: list[int] | None = None
