"""FGFI: imitation near the objects (arXiv 1906.03609).

Shapes: N images, M boxes of an image (padded with zero boxes to the largest count of the batch), a
level of C channels and H_l x W_l cells.
"""

import torch
from detectron2.config import configurable
from torch import Tensor

from kd_d2.modeling.detectors.fcos_targets import pad_objects
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.adapters import FeatureImitation


def best_iou_of_cells(
    boxes: Tensor, anchors: list[tuple[float, float]], stride: int, size: tuple[int, int]
) -> Tensor:
    """The largest IoU that each box has with an anchor of each cell.

    Args:
        boxes: (N, M, 4) in pixels.
        anchors: widths and heights in pixels; their centres are the cells'.
        size: H_l and W_l of the level.

    Returns:
        (N, M, H_l, W_l), zero for a zero box.

    >>> best_iou_of_cells(torch.tensor([[[0.0, 0, 8, 8]]]), [(16.0, 8.0), (8.0, 8.0)], 8, (1, 3))
    tensor([[[[1.0000, 0.2000, 0.0000]]]])
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    areas = ((x2 - x1) * (y2 - y1))[..., None, None]
    best = None
    for width, height in anchors:
        # The anchors of a row of cells have the same rows of pixels: one axis at a time.
        columns = _overlap(x1, x2, width, stride, size[1])[..., None, :]
        intersection = _overlap(y1, y2, height, stride, size[0])[..., None] * columns
        iou = intersection / (areas + width * height - intersection)
        best = iou if best is None else torch.maximum(best, iou)
    return best


def _overlap(low: Tensor, high: Tensor, length: float, stride: int, cells: int) -> Tensor:
    """(N, M) interval ends -> (N, M, cells) pixels shared with an interval around each cell."""
    centre = (torch.arange(cells, device=low.device) + 0.5) * stride
    end = torch.minimum(high[..., None], centre + length / 2)
    return (end - torch.maximum(low[..., None], centre - length / 2)).clamp(min=0)


def near_object_cells(ious: list[Tensor], threshold: float = 0.5) -> list[Tensor]:
    """Cells with an anchor whose IoU with an object is above a share of that object's largest.

    The paper knows one level; here the largest IoU is that over all levels, so an object is
    imitated on those that suit its size. The authors' code for pyramids has no anchors: it marks
    the cells inside each box on one level.

    Args:
        ious: (N, M, H_l, W_l) of each level.
        threshold: that share, the paper's psi.

    Returns:
        (N, H_l, W_l) bool of each level; an object without any overlap has no cells.

    >>> near_object_cells([torch.tensor([[[[0.3, 0.6, 0.4]]]]), torch.tensor([[[[0.2]]]])])
    [tensor([[[False,  True,  True]]]), tensor([[[False]]])]
    """
    largest = torch.stack([x.amax((2, 3)) for x in ious]).amax(0)  # (N, M)
    return [(x > threshold * largest[..., None, None]).any(1) for x in ious]


def fgfi_loss(students: list[Tensor], teachers: list[Tensor], near: list[Tensor]) -> Tensor:
    """Squared error of the near cells: sum of (student - teacher)^2 / (2 near cells).

    Summed over channels; sum and count are those of all levels and images of the batch. Zero if no
    cell is near an object.

    Args:
        students, teachers: (N, C, H_l, W_l) of each level, any floating dtype.
        near: (N, H_l, W_l) bool of each level.

    Returns:
        scalar, float32.

    >>> student, teacher = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.zeros(1, 1, 1, 3)
    >>> fgfi_loss([student], [teacher], [torch.tensor([[[True, False, True]]])])
    tensor(2.5000)
    """
    error = sum(
        ((x.float() - y.float()).square().sum(1) * cells).sum()
        for x, y, cells in zip(students, teachers, near, strict=True)
    )
    return error / (2 * sum(cells.sum() for cells in near).clamp(min=1))


@DISTILL_HEAD_REGISTRY.register()
class FGFI(FeatureImitation):
    """The cells whose anchors are near an object imitate the teacher; the others are free.

    The anchors are the head's own, as not every detector has some. The authors' adapter is a 3x3
    convolution with a ReLU behind it; here it is the 1x1 convolution of the other heads.
    """

    reads_boxes = True

    @configurable
    def __init__(
        self,
        *,
        weight: float = 0.01,
        threshold: float = 0.5,
        sizes: list[float] = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)),
        aspect_ratios: list[float] = (0.5, 1.0, 2.0),
        adapter: bool = True,
        **features,
    ):
        """
        Args:
            weight: factor of the loss.
            threshold: see :func:`near_object_cells`.
            sizes: square roots of the anchors' areas, in strides of their level.
            aspect_ratios: heights of the anchors over their widths.
            adapter, features: arguments of :class:`FeatureImitation`.
        """
        super().__init__(adapter=adapter, **features)
        self.weight = weight
        self.threshold = threshold
        self.anchors = [(size / r**0.5, size * r**0.5) for size in sizes for r in aspect_ratios]

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_fgfi": scalar}``."""
        students, teachers = zip(*self.feature_pairs(student, teacher), strict=True)
        boxes = pad_objects(gt)[0].float()
        ious = [
            best_iou_of_cells(boxes, [(w * s, h * s) for w, h in self.anchors], s, x.shape[2:])
            for x, s in zip(students, self.strides, strict=True)
        ]
        near = near_object_cells(ious, self.threshold)
        return {"loss_fgfi": self.weight * fgfi_loss(students, teachers, near)}
