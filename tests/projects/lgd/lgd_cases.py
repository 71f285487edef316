"""Small batches, pyramids and teachers for the tests of LGD."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances

from kd_d2.modeling.views import DetectorView
from kd_d2.projects.lgd import LabelEncoder

CANVAS = (96, 128)
STRIDES = (8, 16, 32, 64, 128)


def annotate(boxes=(), classes=(), size=CANVAS, **fields):
    """Instances of one image."""
    return Instances(
        tuple(size),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.long),
        **fields,
    )


def batch(num_classes=80):
    """Four images: several objects (tiny, border, degenerate, overlapping), one, none, two."""
    return [
        annotate(
            [
                [3.5, 10.25, 90.0, 80.0],
                [17.0, 17.0, 22.0, 22.0],  # between the cells of all levels
                [100.0, 60.0, 140.0, 120.0],  # reaches out of the canvas
                [40.0, 8.0, 40.0, 64.0],  # no width
                [16.0, 16.0, 48.0, 48.0],  # borders on cells
            ],
            [0, 3 % num_classes, 7 % num_classes, num_classes - 1, 0],
        ),
        annotate([[8.0, 8.0, 100.0, 56.0]], [2 % num_classes]),
        annotate(),
        annotate([[0, 0, 127, 95], [1, 2, 64.3, 31.7]], [0, 1 % num_classes]),
    ]


def shapes(channels=256, strides=STRIDES):
    return {f"p{3 + i}": ShapeSpec(channels=channels, stride=s) for i, s in enumerate(strides)}


def view(images, channels=256, canvas=CANVAS, strides=STRIDES, seed=0, image_sizes=None):
    """A student's view with random features, which ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(
            images, channels, -(-canvas[0] // s), -(-canvas[1] // s), generator=generator
        ).requires_grad_()
        for name, s in zip(shapes(channels, strides), strides, strict=True)
    }
    sizes = image_sizes or [canvas] * images
    return DetectorView(ImageList(torch.zeros(images, 3, *canvas), sizes), features)


def teacher(seed=0, channels=256, num_classes=80, **options):
    torch.manual_seed(seed)
    options = {"feature_shapes": shapes(channels), "num_classes": num_classes} | options
    return LabelEncoder(**options)
