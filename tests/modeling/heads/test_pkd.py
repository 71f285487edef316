"""Facts about channel-standardised imitation."""

import numpy as np
import pytest
import torch
from head_cases import features, shapes, view

from kd_d2.modeling.distill_heads import pair_levels
from kd_d2.modeling.heads.pkd import PKD, pkd_loss, standardize_channels


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
    x = features(shapes())
    y = {"p0": features(shapes(), seed=1)["p0"], "p1": -x["p1"]}
    loss = head(view(x), view(y), None)["loss_pkd"].item()
    assert loss == pytest.approx(10 * (pkd_loss(x["p0"], y["p0"]).item() + 2.0), rel=1e-4)
    assert not list(head.parameters())


def test_levels_are_paired_by_stride():
    rcnn, retina = shapes(strides=(4, 8, 16, 32)), shapes(strides=(8, 16, 32, 64))
    assert pair_levels(retina, rcnn) == [("p0", "p1"), ("p1", "p2"), ("p2", "p3")]
    with pytest.raises(ValueError, match=r"no pyramid level of equal stride.*stride 8.*stride 4"):
        pair_levels(shapes(strides=(8,)), shapes(strides=(4,)))
