import numpy as np
import pytest
import torch

from kd_d2.visualization.principal_components import fit_basis, standardize_over_cells, to_colors


def features(channels=6, h=5, w=7, seed=0):
    return torch.randn(channels, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [6, 80])  # fewer and more than the 35 cells
def test_components_are_those_of_a_singular_value_decomposition(channels):
    x = features(channels)
    z = standardize_over_cells(x)
    _, s, v = torch.linalg.svd(z.T, full_matrices=False)
    basis = fit_basis(x)
    torch.testing.assert_close(basis.loadings.abs(), v[:3].abs(), atol=1e-6, rtol=0)
    torch.testing.assert_close(basis.loadings @ basis.loadings.T, torch.eye(3, dtype=torch.double))
    colors, share = to_colors(x, basis)
    assert colors.shape == (5, 7, 3)
    assert share == pytest.approx((s[:3].square().sum() / s.square().sum()).item())


@pytest.mark.parametrize("channels", [6, 80])
def test_the_largest_loading_is_positive(channels):
    loadings = fit_basis(features(channels)).loadings
    assert (loadings.gather(1, loadings.abs().argmax(1, keepdim=True)) > 0).all()


def test_colours_do_not_depend_on_scale_offset_and_order_of_channels():
    x = features()
    same = (x * torch.tensor([1.0, 9, 0.5, 3, 7, 2]).view(6, 1, 1) + 4)[[3, 1, 5, 0, 4, 2]]
    a, b = (to_colors(f, fit_basis(f))[0] for f in (x, same))
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_equal_features_have_equal_colours_in_one_basis_and_no_others_have_more_variance():
    teacher, student = features(seed=1), features(seed=2)
    basis = fit_basis(teacher)
    (a, own), (b, same) = to_colors(teacher, basis), to_colors(3 * teacher + 1, basis)
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert own == pytest.approx(same)
    assert to_colors(student, basis)[1] < to_colors(student, fit_basis(student))[1] < 1


def test_what_has_three_dimensions_is_shown_whole():
    maps = features(3)
    mixed = torch.einsum("dc,chw->dhw", torch.randn(12, 3), maps)
    assert to_colors(mixed, fit_basis(mixed))[1] == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 2])
def test_components_that_do_not_exist_are_grey(channels):
    x = features(channels)
    colors, share = to_colors(x, fit_basis(x))
    assert share == pytest.approx(1)
    assert (colors[..., channels:] == 0.5).all()
    assert colors[..., 0].min() == 0 and colors[..., 0].max() == 1


def test_a_constant_map_is_grey():
    x = torch.ones(4, 5, 5)
    colors, share = to_colors(x, fit_basis(x))
    assert (colors == 0.5).all() and share == 0


def test_half_precision_is_read():
    x = features().to(torch.bfloat16).requires_grad_()
    assert np.isfinite(to_colors(x, fit_basis(x))[0]).all()


def test_what_is_not_finite_is_refused():
    x = features()
    x[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite: the model has diverged"):
        fit_basis(x)
