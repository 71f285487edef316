"""Shapes, features and objects for the tests of the heads that imitate features."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from kd_d2.modeling.views import DetectorView

CANVAS = 64  # pixels, high and wide


def shapes(channels=4, strides=(8, 16)):
    return {f"p{i}": ShapeSpec(channels=channels, stride=s) for i, s in enumerate(strides)}


def view(features):
    return DetectorView(None, features)


def features(shapes, images=2, seed=0, **kwargs):
    """Random maps of a canvas of 64 x 64 pixels."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            images, x.channels, *[CANVAS // x.stride] * 2, generator=generator
        ).requires_grad_(**kwargs)
        for name, x in shapes.items()
    }


def image(*boxes):
    """The ground truth of an image."""
    gt = Instances((CANVAS, CANVAS), gt_boxes=Boxes(torch.tensor(boxes).view(-1, 4)))
    gt.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    return gt


def objects():
    """Two images; one object is smaller than a cell."""
    return [image([4.0, 6.0, 40.0, 30.0], [20.0, 20.0, 60.0, 60.0]), image([9.0, 9.0, 12.0, 12.0])]
