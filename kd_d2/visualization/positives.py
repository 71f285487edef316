"""Which anchors learn which object, by each network that has a say in it, as dots on the image.

A distiller whose student's labels are not its own has ``shares_labels`` and a method

    label_choices(student, teacher, gt) -> dict[str, list[Tensor]]

of both views, with predictions: whose choice -> labels (R,) of each image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import nn

from kd_d2.modeling.views import DetectorView
from kd_d2.visualization.detections import Boxes2D, class_color

_LARGEST, _SMALLEST = 9.0, 3.0  # dots, in points


@dataclass
class Positives:
    """The anchors of one image that learn an object.

    Attributes:
        title: who has chosen them.
        centres: (n, 2) x, y in pixels of the network's input.
        classes: (n,) of their objects.
        levels: (n,) numbers of their levels, from fine to coarse.
        num_levels: of the detector.
    """

    title: str
    centres: np.ndarray
    classes: np.ndarray
    levels: np.ndarray
    num_levels: int


@torch.no_grad()
def positives(
    distiller: nn.Module, student: DetectorView, teacher: DetectorView, gt: list[Instances]
) -> list[Positives]:
    """Of the first image of a batch; nothing where a student's labels are its own.

    Args:
        student, teacher: views with predictions.
    """
    if not distiller.shares_labels:
        return []
    anchors = distiller.stages.detector.anchor_generator(list(student.features.values()))
    centres = Boxes.cat(anchors).get_centers()
    sizes = torch.tensor([len(a) for a in anchors])
    levels = torch.arange(len(anchors)).repeat_interleave(sizes).numpy()
    background = distiller.stages.num_classes
    with EventStorage():  # what detectors log of it belongs to no training
        choices = distiller.label_choices(student, teacher, gt)
    found = []
    for title, (labels, *_) in choices.items():
        chosen = ((labels >= 0) & (labels < background)).cpu()
        place, classes = centres.cpu()[chosen].numpy(), labels.cpu()[chosen].numpy()
        found.append(Positives(title, place, classes, levels[chosen.numpy()], len(anchors)))
    return found


def draw_positives(
    axes: Axes, image: np.ndarray, truth: Boxes2D, shown: Positives, num_classes: int
) -> None:
    """A pale image with the objects' boxes and a dot for each anchor: the coarser, the larger."""
    axes.imshow((255 - 0.45 * (255.0 - image)).astype(np.uint8))
    height, width = image.shape[:2]
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for (x0, y0, x1, y1), index in zip(truth.boxes, truth.classes, strict=True):
        color = class_color(index, num_classes)
        corner = x0 - 0.5, y0 - 0.5
        axes.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=color, lw=1.0))
    step = (_LARGEST - _SMALLEST) / max(1, shown.num_levels - 1)
    colors = [class_color(c, num_classes) for c in shown.classes]
    # coarse ones first, so that no dot hides behind another
    order = np.argsort(-shown.levels, kind="stable")
    axes.scatter(
        *shown.centres[order].T,
        s=(_SMALLEST + step * shown.levels[order]) ** 2,
        c=[colors[i] for i in order],
        edgecolors="black",
        linewidths=0.5,
        clip_on=True,
        zorder=3,
    )
