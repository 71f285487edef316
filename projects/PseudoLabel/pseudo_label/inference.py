"""Runs a detector over batches; what it finds comes to the CPU while the next batch is computed.

Symbols: n, m detections of an image.
"""

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from .tta import TTA, View, mirror

NOT_FINITE = "the teacher's boxes are not finite"

_MIRRORED = View(mirrored=True)


def flip_agreement(
    boxes: Tensor, classes: Tensor, mirrored: Tensor, mirrored_classes: Tensor, width: int
) -> Tensor:
    """How well the same detector finds each box in the mirrored image.

    Args:
        boxes, classes: (n, 4), (n,).
        mirrored, mirrored_classes: (m, 4), (m,) found in the mirrored image, in its coordinates.
        width: of the image.

    Returns:
        (n,) largest IoU with a box of the same class; 0 where there is none.

    >>> boxes, others = torch.tensor([[20., 10, 60, 50]]), torch.tensor([[42., 11, 80, 50]])
    >>> flip_agreement(boxes, torch.tensor([3]), others, torch.tensor([3]), 100)
    tensor([0.9262])
    """
    overlap = box_iou(boxes, mirror(mirrored, width)).nan_to_num(0.0)
    same = classes[:, None] == mirrored_classes
    # one more column, as there may be none
    return F.pad(overlap * same, (0, 1)).amax(1)


class Found:
    """Detections on their way to the CPU.

    Args:
        tables: of each image (n, 7) box, score, class, agreement; None: its boxes are not finite.
    """

    def __init__(self, tables: list[Tensor | None]):
        self._counts = [None if t is None else len(t) for t in tables]
        packed = [t for t in tables if t is not None]
        self._packed, self._copied = torch.cat(packed) if packed else torch.zeros(0, 7), None
        if self._packed.is_cuda:
            on_gpu = self._packed
            self._packed = torch.empty(on_gpu.shape, pin_memory=True)
            self._packed.copy_(on_gpu, non_blocking=True)
            self._copied = torch.cuda.current_stream(on_gpu.device).record_event()

    def tables(self) -> list[np.ndarray | None]:
        """What was given, float32. Waits for it."""
        if self._copied:
            self._copied.synchronize()
        parts, place = self._packed.numpy(), 0
        tables = []
        for count in self._counts:
            tables.append(None if count is None else parts[place : place + count])
            place += count or 0
        return tables


class Detector:
    """
    Args:
        detector: in eval mode; is moved to ``device`` by :meth:`to_device`.
        flip: look at the mirrored images of the test size, too, and note how well both agree.
        amp: automatic mixed precision.
        tta: in which views it looks at an image, one after the other.
    """

    def __init__(
        self,
        detector: nn.Module,
        device: torch.device,
        flip: bool,
        amp: bool,
        tta: TTA = TTA(),  # noqa: B008, it is frozen
    ):
        self._detector, self._device = detector, device
        self._flip, self._amp, self._tta = flip, amp, tta
        # each once, though agreement may want one that detections come from, too
        self._views = tuple(dict.fromkeys((*tta.views, _MIRRORED) if flip else tta.views))
        self._move = {"device": device, "non_blocking": True}

    def to_device(self) -> None:
        self._detector.to(self._device)

    def to_cpu(self) -> None:
        """Makes room on the device."""
        self._detector.to("cpu")

    @torch.inference_mode()
    def __call__(self, inputs: list[dict[str, Any]]) -> Found:
        """
        Args:
            inputs: ``image`` (C, h, w), ``height`` and ``width`` of the original image, of each;
                and ``views``, if ``tta`` has other sizes: shorter side -> (C, h, w).
        """
        if not inputs:
            return Found([])
        inputs = [{**x, "image": x["image"].to(**self._move)} for x in inputs]
        with torch.autocast(self._device.type, enabled=self._amp):
            return Found(self._tables(inputs))

    def _tables(self, inputs: list[dict[str, Any]]) -> list[Tensor | None]:
        try:
            seen = {view: self._detect(inputs, view) for view in self._views}
        except (AssertionError, FloatingPointError) as error:
            # Detectron2 gives up on the whole batch if a box of one image is not finite
            if "infinite or NaN" not in str(error):
                raise
            return [None] if len(inputs) == 1 else [self._tables([x])[0] for x in inputs]
        of_images = [dict(zip(seen, x, strict=True)) for x in zip(*seen.values(), strict=True)]
        return [self._table(*x) for x in zip(of_images, inputs, strict=True)]

    def _detect(self, inputs: list[dict[str, Any]], view: View) -> list[Tensor]:
        """Of each image (n, 6) box, score, class; boxes as the view shows them."""

        def shown(x: dict[str, Any]) -> Tensor:
            image = x["image"] if view.size is None else x["views"][view.size].to(**self._move)
            return image.flip(-1) if view.mirrored else image

        outputs = self._detector([{**x, "image": shown(x)} for x in inputs])
        return [_rows(x["instances"]) for x in outputs]

    def _table(self, seen: dict[View, Tensor], image: dict[str, Any]) -> Tensor:
        """(n, 7) box, score, class, agreement, of what views show of an image."""
        found = self._tta.unite(seen, image["width"])
        agreement = torch.full_like(found[:, 4], torch.nan)
        if self._flip:
            other = seen[_MIRRORED]
            boxes, classes = found[:, :4], found[:, 5]
            agreement = flip_agreement(boxes, classes, other[:, :4], other[:, 5], image["width"])
        return torch.cat([found, agreement[:, None]], 1)


def _rows(found: Instances) -> Tensor:
    columns = (found.scores.float(), found.pred_classes.float())
    return torch.cat([found.pred_boxes.tensor.float(), torch.stack(columns, 1)], 1)
