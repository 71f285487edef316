"""Test-time augmentation: a teacher looks at several views of an image; what it finds is united.

After Data Distillation (arXiv 1712.04440), which labels images by such an ensemble of one model.

Symbols: n detections of an image, all views together or those of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torchvision.ops import batched_nms

from kd_d2.config.names import detector_node

from .settings import GenerateSettings


class View(NamedTuple):
    """
    Attributes:
        size: shorter side to which the image is brought; None: the teacher's test size.
        mirrored: from left to right.
    """

    size: int | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class TTA:
    """Detectron2's ``GeneralizedRCNNWithTTA`` for any detector.

    It unites boxes as that one does: NMS in each class, and the best scores stay. It takes them
    from the detector's own results in each view, of which the weakest and the overlapping ones have
    gone already, since that is what all detectors have in common.

    Attributes:
        views: in which detections are looked for.
        nms: IoU above which the weaker of two boxes of a class is dropped.
        topk: most detections of an image; None: all.
    """

    views: tuple[View, ...] = (View(),)
    nms: float = 1.0
    topk: int | None = None

    @classmethod
    def of(cls, cfg: CfgNode, settings: GenerateSettings) -> "TTA":
        """
        Args:
            cfg: of ``teacher_config``.
        """
        test_size = cfg.INPUT.MIN_SIZE_TEST
        sizes = [None if size == test_size else size for size in settings.tta_sizes] or [None]
        mirrored = (False, True) if settings.tta_flip else (False,)
        nms = cfg.MODEL[detector_node(cfg.MODEL.META_ARCHITECTURE)].NMS_THRESH_TEST
        return cls(tuple(View(s, m) for s in sizes for m in mirrored), nms, settings.topk)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shorter sides besides the test size."""
        return tuple(dict.fromkeys(v.size for v in self.views if v.size is not None))

    def unite(self, seen: Mapping[View, Tensor], width: int) -> Tensor:
        """
        Args:
            seen: of each view (n, 6) box, score, class; boxes as the view shows them, in pixels of
                the original image.
            width: of the original image.

        Returns:
            (n, 6), by falling score, without those that are not finite; of a single view, what was
            given.
        """
        if len(self.views) == 1:
            return seen[self.views[0]]
        rows = torch.cat([mirror(seen[v], width) if v.mirrored else seen[v] for v in self.views])
        rows = rows[rows.isfinite().all(1)]
        # it keeps classes apart by large offsets, next to which float32 would round the boxes
        exact = rows.double()
        keep = batched_nms(exact[:, :4], exact[:, 4], exact[:, 5], self.nms)
        return rows[keep[: self.topk]]


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes in the mirrored image.

    Args:
        boxes: (n, 4) or, with more columns that stay, (n, k).
        width: of the image.

    >>> mirror(torch.tensor([[42.0, 11, 80, 50]]), 100)
    tensor([[20., 11., 58., 50.]])
    """
    turned = boxes.clone()
    turned[:, [0, 2]] = width - boxes[:, [2, 0]]
    return turned
