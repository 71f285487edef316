"""From annotations to descriptors: what the label encoder reads (paper, section 3.2.1).

Symbols: B images, N_b objects of image b, M rows an image (the largest of the batch, shorter
images are filled up), K classes, k numbers in a descriptor, canvas = (H, W) of the padded batch.

Rows of an image: its objects in the order of the annotations. With the context box there is one
row more, the first of each image, so that it has the same place in images of any N_b. An image
without objects has a dummy row, which with the context box is that first row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .label_maps import MASK_CELLS, mask_pictures

LABEL_FORMATS = ("one_hot", "norm_classes")
_NO_CLASS = -1


@dataclass
class LabelRows:
    """The labels of a batch, one row an object.

    Attributes:
        boxes: (B, M, 4) absolute XYXY, clamped to the canvas; zero (an empty region) in fillers.
        descriptors: (B, M, k) in [-1, 1].
        valid: (B, M) bool, False in fillers.
    """

    boxes: Tensor
    descriptors: Tensor
    valid: Tensor


def descriptor_width(num_classes: int, label_format: str, label_maps: bool) -> int:
    """k: box, class part, and the picture of the mask if there is one.

    >>> descriptor_width(80, "one_hot", False), descriptor_width(80, "one_hot", True)
    (84, 133)
    >>> descriptor_width(80, "norm_classes", False)
    5
    """
    classes = num_classes if label_format == "one_hot" else 1
    return 4 + classes + (MASK_CELLS if label_maps else 0)


def class_part(classes: Tensor, num_classes: int, label_format: str) -> Tensor:
    """The class in a descriptor; zeros for -1, the class of context, dummy and filler rows.

    Args:
        classes: (...) class indices.

    Returns:
        (..., K) for "one_hot", (..., 1) for "norm_classes", in float32.

    >>> class_part(torch.tensor([2, -1]), 3, "one_hot").tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    >>> class_part(torch.tensor([2, -1]), 4, "norm_classes").tolist()
    [[0.5], [0.0]]
    """
    if label_format == "one_hot":
        known = torch.arange(num_classes, device=classes.device)
        return (classes[..., None] == known).float()
    return classes.clamp(min=0).float()[..., None] / num_classes


def clamp_boxes(boxes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Clamps (..., 4) boxes to x in [0, W - 1] and y in [0, H - 1]."""
    h, w = canvas
    x, y = boxes[..., 0::2].clamp(0, w - 1), boxes[..., 1::2].clamp(0, h - 1)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


@torch.no_grad()
def describe_labels(
    gt: Sequence[Instances],
    canvas: tuple[int, int],
    num_classes: int,
    *,
    label_format: str = "one_hot",
    context_box: bool = True,
    label_maps: bool = False,
    device: torch.device | str = "cpu",
) -> LabelRows:
    """Builds the rows of all images at once. The host never waits for the device.

    Args:
        gt: B annotated images with ``gt_boxes`` and ``gt_classes`` (and ``gt_masks`` for
            ``label_maps``), on any device.
        context_box: whether each image gets the context row.
        label_maps: append the 7x7 picture of each object's mask.

    Raises:
        ValueError: if ``label_maps`` is asked for and an annotated image has no masks.
    """
    counts = [len(x) for x in gt]
    boxes = [x.gt_boxes.tensor.to(device, torch.float32, non_blocking=True) for x in gt]
    classes = [x.gt_classes.to(device, non_blocking=True) for x in gt]
    pictures = [mask_pictures(x).to(device) for x in gt] if label_maps else []
    # One filler at least: a batch without any object then has the same graph as any other.
    rows = max(1, *counts)
    boxes = _fill_up(boxes, rows)
    classes = _fill_up(classes, rows, _NO_CLASS)
    valid = [[i < n for i in range(rows)] for n in counts]

    dummy = [0.0, 0.0, 1.0, 1.0]
    whole = [0.0, 0.0, float(canvas[1]), float(canvas[0])]
    if context_box:
        extra = torch.tensor([[whole if n else dummy] for n in counts]).to(
            device, non_blocking=True
        )
        boxes = torch.cat([extra, boxes], dim=1)
        classes = F.pad(classes, (1, 0), value=_NO_CLASS)
        valid = [[True, *v] for v in valid]
    elif 0 in counts:
        # Images without objects are all fillers so far, that is zeros.
        extra = torch.tensor([[0.0] * 4 if n else dummy for n in counts])
        boxes[:, 0] += extra.to(device, non_blocking=True)
        valid = [[v[0] or n == 0, *v[1:]] for v, n in zip(valid, counts, strict=True)]

    boxes = clamp_boxes(boxes, canvas)
    size = torch.tensor([canvas[1], canvas[0]] * 2, dtype=torch.float32)
    parts = [
        boxes / size.to(device, non_blocking=True),
        class_part(classes, num_classes, label_format),
    ]
    if label_maps:
        pictures = _fill_up(pictures, rows)
        if context_box:
            # The context is seen everywhere, a dummy nowhere.
            seen = torch.tensor([[[float(n > 0)]] for n in counts]).to(device, non_blocking=True)
            pictures = torch.cat([seen.expand(-1, -1, MASK_CELLS), pictures], dim=1)
        parts.append(pictures)
    return LabelRows(
        boxes=boxes,
        descriptors=2 * torch.cat(parts, dim=-1) - 1,
        valid=torch.tensor(valid).to(device, non_blocking=True),
    )


def _fill_up(images: list[Tensor], rows: int, value: float = 0) -> Tensor:
    """B tensors (N_b, ...) -> (B, rows, ...), filled up with ``value``."""
    filled = pad_sequence(images, batch_first=True, padding_value=value)
    missing = rows - filled.shape[1]
    return F.pad(filled, (0, 0) * (filled.dim() - 2) + (0, missing), value=value)
