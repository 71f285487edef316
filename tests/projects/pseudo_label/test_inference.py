"""A detector over batches: the mirrored image, and numbers that are none."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from kd_d2.projects.pseudo_label.inference import Detector, flip_agreement


class Fixed(nn.Module):
    """Finds what it is told to; boxes by the red of the first pixel."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes, self.calls = boxes, []

    def forward(self, inputs):
        self.calls.append(len(inputs))
        found = []
        for x in inputs:
            boxes = torch.tensor(self.boxes[int(x["image"][0, 0, 0])]).reshape(-1, 4)
            if boxes.isinf().any() and self.training is False:
                raise AssertionError("Box tensor contains infinite or NaN!")
            n = len(boxes)
            found.append(
                Instances(
                    (x["height"], x["width"]),
                    pred_boxes=Boxes(boxes),
                    scores=torch.linspace(0.9, 0.5, n),
                    pred_classes=torch.arange(n) % 2,
                )
            )
        return [{"instances": x} for x in found]


def image_of(left, right=None, width=100):
    image = torch.zeros(3, 60, 10, dtype=torch.uint8)
    image[0, 0, 0], image[0, 0, -1] = left, left if right is None else right
    return {"image": image, "height": 60, "width": width}


def test_agreement_with_the_mirrored_image():
    boxes = {1: [[20.0, 10, 60, 50], [0, 0, 9, 9]], 2: [[42.0, 11, 80, 50]], 3: []}
    detector = Detector(Fixed(boxes).eval(), torch.device("cpu"), flip=True, amp=False)
    tables = detector([image_of(1, 2), image_of(1, 3), image_of(3, 1)]).tables()
    assert tables[0][0, 6] == pytest.approx(0.92625, abs=1e-5)
    assert tables[0][1, 6] == 0  # of the other class
    assert tables[1][:, 6].tolist() == [0, 0]
    assert tables[2].shape == (0, 7)
    assert tables[0][0, :6].tolist() == pytest.approx([20, 10, 60, 50, 0.9, 0])
    plain = Detector(Fixed(boxes).eval(), torch.device("cpu"), flip=False, amp=False)
    assert np.isnan(plain([image_of(1, 2)]).tables()[0][:, 6]).all()


def test_agreement_is_the_largest_of_the_same_class():
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(2, 9, 2, generator=generator) * 60
    boxes, others = (
        torch.cat([x, x + 5 + 30 * torch.rand(9, 2, generator=generator)], 1) for x in corners
    )
    classes, other_classes = torch.randint(3, (2, 9), generator=generator)
    found = flip_agreement(boxes, classes, others, other_classes, 100)
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        best = 0.0
        for (u0, v0, u1, v1), c in zip(others.tolist(), other_classes.tolist(), strict=True):
            u0, u1 = 100 - u1, 100 - u0
            w, h = min(x1, u1) - max(x0, u0), min(y1, v1) - max(y0, v0)
            if c == classes[i] and w > 0 and h > 0:
                union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - w * h
                best = max(best, w * h / union)
        assert found[i].item() == pytest.approx(best, abs=1e-5)
    assert 0 < (found > 0).sum() < 9
    nan = boxes.clone()
    nan[0] = torch.nan
    assert flip_agreement(nan, classes, others, other_classes, 100).isfinite().all()


def test_numbers_that_are_none_are_kept():
    boxes = {1: [[0.0, 0, torch.nan, 5], [1, 2, 3, 4]]}
    detector = Detector(Fixed(boxes).eval(), torch.device("cpu"), flip=False, amp=False)
    (table,) = detector([image_of(1)]).tables()
    assert np.isnan(table[0, 2]) and table[1, :4].tolist() == [1, 2, 3, 4]


def test_a_detector_that_gives_up_on_one_image_of_a_batch():
    boxes = {1: [[0.0, 0, 5, 5]], 2: [[0.0, 0, torch.inf, 5]]}
    fixed = Fixed(boxes).eval()
    detector = Detector(fixed, torch.device("cpu"), flip=False, amp=False)
    tables = detector([image_of(1), image_of(2), image_of(1)]).tables()
    assert [None if t is None else len(t) for t in tables] == [1, None, 1]
    assert fixed.calls == [3, 1, 1, 1]
    assert detector([]).tables() == [] and fixed.calls == [3, 1, 1, 1]
