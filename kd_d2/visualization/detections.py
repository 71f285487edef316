"""Ground truth and detections of several models, side by side."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import nn

_COLORS = ("#3aa0ff", "#ff8c1a", "#37d637", "#ff4040", "#c77dff", "#00e0d6", "#ffe034", "#ff7ac8")
WRONG = (0, (1.6, 1.1))  # dashes


@dataclass
class Boxes2D:
    """Boxes on one image.

    Attributes:
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the original image.
        classes: (n,) class ids.
        scores: (n,), 1 for ground truth.
        masks: (n, H, W) bool, or None.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None


def ground_truth(record: dict) -> Boxes2D:
    """The labels of a record in Detectron2's format, without crowds."""
    labels = [x for x in record.get("annotations", ()) if not x.get("iscrowd", 0)]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in labels]
    return Boxes2D(
        np.array(boxes, dtype=float).reshape(-1, 4),
        np.array([x["category_id"] for x in labels], dtype=int),
        np.ones(len(labels)),
    )


@torch.no_grad()
def detect(
    model: nn.Module, inputs: list[dict], threshold: float, limit: int = 10
) -> list[Boxes2D]:
    """What a model in eval mode finds with at least this score: the best ``limit`` an image."""
    found = []
    for x in inputs:
        found.append(predicted_boxes(model([x])[0]["instances"], threshold, limit))
    return found


def predicted_boxes(result: Instances, threshold: float, limit: int) -> Boxes2D:
    """The best ``limit`` detections with at least this score, the surest first."""
    result = result.to("cpu")
    result = result[result.scores.argsort(descending=True)[:limit]]
    result = result[result.scores >= threshold]
    return Boxes2D(
        result.pred_boxes.tensor.detach().numpy(),
        result.pred_classes.numpy(),
        result.scores.detach().numpy(),
        result.pred_masks.numpy().astype(bool) if result.has("pred_masks") else None,
    )


def labelled_boxes(labels: Instances) -> Boxes2D:
    """Ground truth as models get it, in pixels of their input image."""
    labels = labels.to("cpu")
    masks = None
    if labels.has("gt_masks") and isinstance(labels.gt_masks, PolygonMasks):
        polygons = [polygons_to_bitmask(p, *labels.image_size) for p in labels.gt_masks.polygons]
        masks = np.array(polygons, dtype=bool).reshape(-1, *labels.image_size)
    elif labels.has("gt_masks") and isinstance(labels.gt_masks, BitMasks):
        masks = labels.gt_masks.tensor.numpy()
    return Boxes2D(
        labels.gt_boxes.tensor.numpy(), labels.gt_classes.numpy(), np.ones(len(labels)), masks
    )


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 4) and (m, 4): (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    return inter / np.maximum(area_a[:, None] + area_b[None] - inter, 1e-9)


def is_right(found: Boxes2D, truth: Boxes2D, iou: float = 0.5) -> np.ndarray:
    """(n,) bool: the detection is the best one of an object of its class; others are wrong."""
    right = np.zeros(len(found.boxes), dtype=bool)
    overlaps = iou_matrix(found.boxes, truth.boxes)
    overlaps[found.classes[:, None] != truth.classes[None]] = 0
    for i in np.argsort(-found.scores, kind="stable"):
        if overlaps.shape[1] and overlaps[i].max() >= iou:
            right[i] = True
            overlaps[:, overlaps[i].argmax()] = 0
    return right


def class_color(index: int, count: int) -> str | tuple:
    """A colour for a class id: bright ones, or a hue circle where they do not suffice."""
    if count <= len(_COLORS):
        return _COLORS[index]
    return matplotlib.colormaps["hsv"](index / count)


def draw(
    axes: Axes, image: np.ndarray, found: Boxes2D, num_classes: int, right: np.ndarray | None = None
) -> None:
    """An image with coloured boxes and masks; wrong boxes are dashed."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    if found.masks is not None and len(found.masks):
        axes.imshow(_tint(found, num_classes))
    for i, (x0, y0, x1, y1) in enumerate(found.boxes):
        style = "-" if right is None or right[i] else WRONG
        # A dark line below keeps every colour visible on every background.
        for color, width in (("black", 3.0), (class_color(found.classes[i], num_classes), 1.6)):
            axes.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5),
                    x1 - x0,
                    y1 - y0,
                    fill=False,
                    edgecolor=color,
                    linewidth=width,
                    linestyle=style if color != "black" else "-",
                    alpha=1.0 if color != "black" else 0.55,
                )
            )


def _tint(found: Boxes2D, num_classes: int) -> np.ndarray:
    """(H, W, 4): each pixel in the colour of the first of its objects, half transparent."""
    layer = np.zeros((*found.masks.shape[1:], 4))
    for mask, index in zip(found.masks[::-1], found.classes[::-1], strict=True):
        layer[mask] = matplotlib.colors.to_rgba(class_color(index, num_classes), 0.45)
    return layer


def detection_sheet(
    path: Path,
    images: list[np.ndarray],
    truth: list[Boxes2D],
    models: dict[str, list[Boxes2D]],
    names: list[str],
    per_row: int = 2,
) -> None:
    """Writes one picture: for each image its ground truth, then what each model found.

    Args:
        models: column title -> detections on each image.
        names: class names.
        per_row: images in a row.
    """
    titles = ["ground truth", *models]
    rows = -(-len(images) // per_row)
    width = per_row * (len(titles) + 0.15)
    figure = Figure(figsize=(1.75 * width, 1.75 * rows + 0.62))
    grid = figure.add_gridspec(
        rows,
        per_row * (len(titles) + 1) - 1,
        width_ratios=(([1] * len(titles) + [0.15]) * per_row)[:-1],
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=1 - 0.58 / (1.75 * rows + 0.62),
        wspace=0.03,
        hspace=0.04,
    )
    for i, image in enumerate(images):
        row, block = divmod(i, per_row)
        for j, title in enumerate(titles):
            axes = figure.add_subplot(grid[row, block * (len(titles) + 1) + j])
            found = truth[i] if j == 0 else models[title][i]
            draw(axes, image, found, len(names), is_right(found, truth[i]) if j else None)
            if row == 0:
                axes.set_title(title, fontsize=10, pad=3)
    keys = [
        Line2D([], [], color=class_color(k, len(names)), linewidth=3, label=name)
        for k, name in enumerate(names)
    ]
    keys.append(Line2D([], [], color="0.3", label="right"))
    keys.append(Line2D([], [], color="0.3", linestyle=WRONG, label="wrong or double"))
    figure.legend(
        handles=keys, loc="upper center", ncols=min(len(keys), 12), fontsize=9, frameon=False
    )
    figure.savefig(path, dpi=110)
