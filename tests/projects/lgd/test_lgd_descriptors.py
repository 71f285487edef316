import pytest
import torch
from lgd_cases import CANVAS, annotate, batch
from lgd_reference import describe

from kd_d2.projects.lgd.descriptors import describe_labels


def test_hand_computed():
    gt = [annotate([[12.0, 24.0, 200.0, 90.0]], [1])]
    rows = describe_labels(gt, CANVAS, 3, context_box=True)
    assert rows.valid.tolist() == [[True, True]]
    # The context row comes first. Boxes are clamped to W - 1 and divided by W.
    assert rows.boxes[0].tolist() == [[0, 0, 127, 95], [12, 24, 127, 90]]
    end = 2 * 127 / 128 - 1
    context = [-1, -1, end, 2 * 95 / 96 - 1, -1, -1, -1]
    thing = [2 * 12 / 128 - 1, -0.5, end, 2 * 90 / 96 - 1, -1, 1, -1]
    assert torch.allclose(rows.descriptors[0], torch.tensor([context, thing]), atol=1e-6)


@pytest.mark.parametrize("context", [False, True])
def test_image_without_objects_is_one_dummy_row(context):
    rows = describe_labels([annotate()], CANVAS, 2, context_box=context)
    assert rows.valid[0].tolist() == [True] + [False] * int(context)
    assert rows.boxes[0, 0].tolist() == [0, 0, 1, 1]
    expected = [-1, -1, 2 / 128 - 1, 2 / 96 - 1, -1, -1]
    assert torch.allclose(rows.descriptors[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("label_format", ["one_hot", "norm_classes"])
@pytest.mark.parametrize("num_classes", [1, 20])
def test_equal_to_row_by_row(context, label_format, num_classes):
    gt = batch(num_classes)
    rows = describe_labels(gt, CANVAS, num_classes, context_box=context, label_format=label_format)
    assert rows.descriptors.shape[:2] == rows.valid.shape == (4, 5 + context)
    for b, x in enumerate(gt):
        boxes, descriptors = describe(x, CANVAS, num_classes, context, label_format)
        if context:  # last there, first here
            boxes, descriptors = boxes.roll(1, 0), descriptors.roll(1, 0)
        assert rows.valid[b].tolist() == [i < len(boxes) for i in range(5 + context)]
        assert torch.equal(rows.boxes[b][rows.valid[b]], boxes)
        assert torch.allclose(rows.descriptors[b][rows.valid[b]], descriptors, atol=1e-6)
        assert not rows.boxes[b][~rows.valid[b]].any()
    assert rows.descriptors.abs().max() <= 1


def test_a_batch_without_objects_has_the_rows_of_any_other():
    rows = describe_labels([annotate(), annotate()], CANVAS, 4, context_box=True)
    assert rows.boxes.shape == (2, 2, 4) and rows.valid.tolist() == [[True, False]] * 2
