import json

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from kd_d2.experiments.metrics import Metrics
from kd_d2.visualization.channel_energy import feature_energy
from kd_d2.visualization.curves import plot_curves
from kd_d2.visualization.detections import (
    Boxes2D,
    class_color,
    detection_sheet,
    ground_truth,
    iou_matrix,
    is_right,
)


def boxes(*rows):
    """Rows of x0, y0, x1, y1, class, score."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return Boxes2D(table[:, :4], table[:, 4].astype(int), table[:, 5])


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_iou_by_hand():
    a = np.array([[0, 0, 2, 2], [10, 10, 12, 12]], dtype=float)
    b = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [10, 10, 11, 11]], dtype=float)
    np.testing.assert_allclose(iou_matrix(a, b), [[1 / 3, 1, 0], [0, 0, 1 / 4]])
    assert iou_matrix(np.zeros((0, 4)), b).shape == (0, 3)


def test_right_means_the_best_of_its_object_and_class():
    truth = boxes([0, 0, 10, 10, 1, 1], [20, 20, 30, 30, 2, 1])
    found = boxes(
        [0, 0, 10, 8, 1, 0.6],  # a double of the next one, which is surer
        [0, 0, 10, 9, 1, 0.9],
        [20, 20, 30, 30, 1, 0.8],  # wrong class
        [20, 20, 30, 24, 2, 0.7],  # too little overlap
        [21, 20, 31, 30, 2, 0.5],
    )
    assert is_right(found, truth).tolist() == [False, True, False, False, True]
    assert is_right(found, boxes()).tolist() == [False] * 5
    assert is_right(boxes(), truth).tolist() == []


def test_ground_truth_is_read_in_any_box_format_without_crowds():
    record = {
        "annotations": [
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 5},
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 6},
            {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 7, "iscrowd": 1},
        ]
    }
    truth = ground_truth(record)
    assert truth.boxes.tolist() == [[1, 2, 4, 6], [1, 2, 3, 4]]
    assert truth.classes.tolist() == [5, 6]
    assert ground_truth({}).boxes.shape == (0, 4)


@pytest.mark.parametrize("count", [2, 8, 80])
def test_classes_have_colours_of_their_own(count):
    assert len({class_color(i, count) for i in range(count)}) == count


@pytest.mark.parametrize(("images", "per_row"), [(1, 1), (3, 2)])
def test_the_sheet_is_drawn_for_any_number_of_images(tmp_path, images, per_row):
    truth = [boxes([2, 2, 20, 20, 0, 1])] * images
    found = [boxes([2, 2, 20, 19, 0, 0.9], [9, 9, 30, 30, 1, 0.8])] * images
    pixels = [np.zeros((32, 48, 3), np.uint8)] * images
    path = tmp_path / "sheet.png"
    detection_sheet(path, pixels, truth, {"a": found, "b": [boxes()] * images}, ["x", "y"], per_row)
    assert is_png(path)


def test_energy_stands_out_where_channels_do():
    x = torch.zeros(4, 5, 5)
    x[:, 2, 3] = torch.tensor([1.0, -1.0, 50.0, 2.0])  # a loud channel counts like the others
    energy = feature_energy(x)
    assert energy.shape == (5, 5) and energy.argmax() == 2 * 5 + 3
    assert energy.min() == 0 and energy.max() == 1
    assert np.isfinite(feature_energy(torch.ones(4, 5, 5))).all()


def test_energy_ignores_scale_and_offset_of_a_channel():
    x = torch.randn(6, 7, 7, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 10.0, 0.5, 3.0, 7.0, 2.0]).view(6, 1, 1)
    np.testing.assert_allclose(feature_energy(x), feature_energy(x * scale + 4), atol=1e-3)


def test_curves_are_drawn_from_whatever_there_is(tmp_path):
    def run(**extra):
        return {"total_loss": 2.0, "loss_cls": 1.0, "bbox/AP": 3.0, **extra}

    full = {9: run(**{"loss_cls.tea": 0.5, "bbox_teacher/AP": 9.0, "lgd/distill_on": 0.0})}
    full[19] = {**full[9], "lgd/distill_on": 1.0}
    plot_curves(tmp_path / "full.png", {"plain": Metrics({9: run()}), "LGD": Metrics(full)})
    plot_curves(tmp_path / "empty.png", {"plain": Metrics({})})
    nan = json.loads('{"bbox/AP": NaN, "total_loss": 1.0}')
    plot_curves(tmp_path / "nan.png", {"plain": Metrics({9: nan})})
    assert all(is_png(tmp_path / f"{name}.png") for name in ("full", "empty", "nan"))
