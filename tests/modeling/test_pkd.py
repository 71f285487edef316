"""Facts about channel-standardised imitation."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec

from kd_d2.modeling.distill_heads import pair_levels
from kd_d2.modeling.pkd import PKD, pkd_loss, standardize_channels
from kd_d2.modeling.views import DetectorView


def shapes(channels=4, strides=(8, 16)):
    return {f"p{i}": ShapeSpec(channels=channels, stride=s) for i, s in enumerate(strides)}


def view(features):
    return DetectorView(None, features)


def test_loss_is_one_minus_pearson_averaged_over_channels():
    x, y = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    r = [np.corrcoef(x[:, c].flatten(), y[:, c].flatten())[0, 1] for c in range(3)]
    assert pkd_loss(x, y).item() == pytest.approx(np.mean([1 - v for v in r]), abs=1e-5)


def test_magnitude_and_offset_of_a_channel_do_not_matter():
    x, y = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    scale = torch.tensor([1e-2, 1.0, 50.0]).view(1, 3, 1, 1)
    assert pkd_loss(x, y * scale + 3).item() == pytest.approx(pkd_loss(x, y).item(), abs=1e-4)


def test_constant_and_one_cell_channels_stay_finite():
    x = torch.zeros(1, 2, 1, 1, requires_grad=True)
    loss = pkd_loss(x, torch.randn(1, 2, 1, 1))
    loss.backward()
    assert loss == 0 and torch.isfinite(x.grad).all()


def test_half_precision_is_computed_in_float32():
    x = torch.randn(1, 2, 4, 4).to(torch.bfloat16)
    assert standardize_channels(x).dtype == torch.float32


def test_head_sums_levels_and_weighs():
    head = PKD(student_shapes=shapes(), teacher_shapes=shapes(), weight=10.0)
    x = {"p0": torch.randn(2, 4, 6, 6), "p1": torch.randn(2, 4, 3, 3)}
    y = {"p0": torch.randn(2, 4, 6, 6), "p1": -x["p1"]}
    loss = head(view(x), view(y), None)["loss_pkd"].item()
    assert loss == pytest.approx(10 * (pkd_loss(x["p0"], y["p0"]).item() + 2.0), rel=1e-4)
    assert not list(head.parameters())


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    head = PKD(student_shapes=shapes(), teacher_shapes=shapes())
    x, y = ({f"p{i}": torch.randn(2, 4, 4, 4) for i in range(2)} for _ in range(2))
    twice = [{k: torch.cat([v, v]) for k, v in side.items()} for side in (x, y)]
    once = head(view(x), view(y), None)["loss_pkd"].item()
    assert head(view(twice[0]), view(twice[1]), None)["loss_pkd"].item() == pytest.approx(once)


def test_levels_are_paired_by_stride():
    rcnn, retina = shapes(strides=(4, 8, 16, 32)), shapes(strides=(8, 16, 32, 64))
    assert pair_levels(retina, rcnn) == [("p0", "p1"), ("p1", "p2"), ("p2", "p3")]
    with pytest.raises(ValueError, match=r"no pyramid level of equal stride.*stride 8.*stride 4"):
        pair_levels(shapes(strides=(8,)), shapes(strides=(4,)))


def test_unequal_channels_name_both_shapes_and_the_way_out():
    match = r"p0 \(4 channels, stride 8\).*p0 \(6 channels, stride 8\).*PKD.ADAPTER True"
    with pytest.raises(ValueError, match=match):
        PKD(student_shapes=shapes(4), teacher_shapes=shapes(6))
    head = PKD(student_shapes=shapes(4), teacher_shapes=shapes(6), adapter=True)
    x = {f"p{i}": torch.randn(2, 4, 4, 4) for i in range(2)}
    y = {f"p{i}": torch.randn(2, 6, 4, 4, requires_grad=True) for i in range(2)}
    head(view(x), view(y), None)["loss_pkd"].backward()
    assert head.adapter.weight.grad.abs().sum() > 0 and y["p0"].grad is None


def test_unequal_padding_is_cropped_at_the_common_corner():
    head = PKD(student_shapes=shapes(strides=(8,)), teacher_shapes=shapes(strides=(8,)))
    x = torch.randn(1, 4, 4, 6)
    padded = torch.cat([x, torch.randn(1, 4, 2, 6)], 2)
    assert head(view({"p0": x}), view({"p0": padded}), None)["loss_pkd"].item() < 1e-5
