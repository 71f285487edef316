"""The mixture fit of PAA against scikit-learn, against worked examples, and on degenerate sets."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from kd_d2.modeling.detectors import gaussian_mixture
from kd_d2.modeling.detectors.gaussian_mixture import fit_two_gaussians

A = [0.61, 0.74, 0.80, 0.95, 2.10, 2.25, 2.40, 2.90]
B = [0.81, 1.49, 1.49, 1.50, 1.50, 1.51, 1.52, 2.42]
C = [0.24, 1.46, 1.47, 1.49, 1.50, 1.50, 1.51, 1.52, 1.53, 2.68]
ONE_ALONE = [4.75, 5.45, 7.91]  # of float32 numbers, E[x^2] - E[x]^2 of the last comes out negative


def pad(sets, width=None, dtype=torch.float64):
    """Values (S, K) and which are of a set; what is not is rubbish."""
    width = width or max(map(len, sets))
    values = torch.full((len(sets), width), torch.nan, dtype=dtype)
    for row, numbers in zip(values, sets, strict=True):
        row[: len(numbers)] = torch.tensor(numbers, dtype=dtype)
    return values, torch.arange(width) < torch.tensor([[len(s)] for s in sets])


def fit(*sets, width=None, dtype=torch.float64):
    return fit_two_gaussians(*pad(sets, width, dtype))


def one_set(kind, rng):
    """2 to 90 numbers of one of ten kinds."""
    n = int(rng.integers(2, 90))
    smooth = 0.3 + rng.gamma(2.0, 0.7, n)
    return {
        "gamma": lambda: smooth,
        "bimodal": lambda: np.where(rng.random(n) < 0.3, 0.7, 2.5) + rng.normal(0, 0.15, n),
        "ties": lambda: smooth.round(1),
        "equal": lambda: np.full(n, smooth[0]),
        "pair": lambda: smooth[:2],
        "one far above": lambda: np.append(smooth, smooth.max() + rng.uniform(1, 20)),
        "one far below": lambda: np.append(rng.uniform(0, 1), 5 + rng.normal(0, 0.02, n)),
        "tiny spread, large offset": lambda: 30 + 1e-3 * smooth,
        "huge": lambda: 1e6 * smooth,
        "wide": lambda: rng.exponential(30.0, n),
    }[kind]()


KINDS = [
    *("gamma", "bimodal", "ties", "equal", "pair", "one far above", "one far below"),
    *("tiny spread, large offset", "huge", "wide"),
]
SETS = {
    kind: [sorted(one_set(kind, np.random.default_rng([i, j])).tolist()) for j in range(25)]
    for i, kind in enumerate(KINDS)
}


def reference(numbers):
    """scikit-learn's mixture, fitted to one set."""
    x = np.array(numbers)[:, None]
    mixture = GaussianMixture(
        2,
        weights_init=[0.5, 0.5],
        means_init=[x.min(0), x.max(0)],
        precisions_init=[[[1.0]], [[1.0]]],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(x), x


@pytest.mark.parametrize("kind", KINDS)
def test_equals_scikit_learn(kind):
    """25 sets of each kind in one batch; components where they differ by more than rounding."""
    found = fit(*SETS[kind])
    sure = 0
    for i, numbers in enumerate(SETS[kind]):
        mixture, x = reference(numbers)
        n = len(numbers)
        assert found.steps[i] == mixture.n_iter_
        close = dict(rel=1e-8, abs=1e-8)
        assert found.means[i].tolist() == pytest.approx(mixture.means_[:, 0], **close)
        assert found.weights[i].tolist() == pytest.approx(mixture.weights_, **close)
        variances = mixture.covariances_[:, 0, 0]
        assert found.variances[i].tolist() == pytest.approx(variances, rel=1e-7, abs=1e-12)
        density = mixture.score_samples(x)
        assert found.log_density[i, :n].tolist() == pytest.approx(density, **close)
        share = mixture.predict_proba(x)
        clear = np.abs(share[:, 1] - share[:, 0]) > 1e-9
        sure += clear.sum()
        assert (found.component[i, :n].numpy() == mixture.predict(x))[clear].all()
    numbers = sum(map(len, SETS[kind]))
    assert sure == 0 if kind == "equal" else sure > 0.99 * numbers


def test_sets_are_of_2_to_90_numbers():
    lengths = {len(s) for sets in SETS.values() for s in sets}
    assert min(lengths) == 2 and max(lengths) >= 88 and sum(map(len, SETS.values())) == 250


# set, steps, weight of the 0th, means, variances, components, log densities
EXAMPLES = {
    "A": (
        A,
        6,
        0.499999,
        (0.775000, 2.412497),
        (0.014926, 0.090474),
        [0, 0, 0, 0, 1, 1, 1, 1],
        [-0.421759, 0.449204, 0.469301, -0.535654, -0.950418, -0.556665, -0.411602, -1.724148],
    ),
    "B, the cheapest lies alone": (
        B,
        8,
        0.743505,
        (1.501632, 1.612232),
        (0.000114303, 0.631917),
        [1, 0, 0, 0, 0, 0, 0, 1],
        [-2.559313, 2.739440, 2.739440, 3.316002, 3.316002, 3.022908, 1.867084, -2.566365],
    ),
    "C, the 0th has both ends": (C, 9, None, None, None, [0, *[1] * 8, 0], None),
    "equal": ([0.9] * 4, 3, None, (0.9, 0.9), (1e-6, 1e-6), [0] * 4, None),
    "a pair": ([1.0, 2.0], 3, 0.5, (1.367026, 1.632974), None, [0, 1], None),
    "one alone": (ONE_ALONE, 5, 2 / 3, (5.1, 7.91), (0.122501, 1e-6), [0, 0, 1], None),
}


@pytest.mark.parametrize("width", [None, 45])
@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_examples(name, width):
    numbers, steps, weight, means, variances, components, density = EXAMPLES[name]
    found, n = fit(numbers, width=width), len(numbers)
    assert found.steps.tolist() == [steps]
    assert found.component[0, :n].tolist() == components
    if weight is not None:
        assert found.weights[0].tolist() == pytest.approx([weight, 1 - weight], abs=2e-6)
    if means is not None:
        assert found.means[0].tolist() == pytest.approx(means, abs=2e-6)
    if variances is not None:
        assert found.variances[0].tolist() == pytest.approx(variances, abs=1e-6, rel=1e-4)
    if density is not None:
        assert found.log_density[0, :n].tolist() == pytest.approx(density, abs=2e-6)


# ---- what each step does

# means, variances and weight of the 0th after each step of example A
STEPS_OF_A = [
    (0.551855, 1.048309, 2.265417, 0.362009, 0.350152),
    (0.538150, 0.931063, 2.365916, 0.222976, 0.197792),
    (0.509983, 0.805279, 2.414349, 0.056498, 0.096360),
    (0.499998, 0.775000, 2.412495, 0.014926, 0.090477),
    (0.499999, 0.775000, 2.412497, 0.014926, 0.090474),
    (0.499999, 0.775000, 2.412497, 0.014926, 0.090474),
]


@pytest.mark.parametrize("steps", range(1, 7))
def test_each_step_of_example_a(steps, monkeypatch):
    monkeypatch.setattr(gaussian_mixture, "_MAX_STEPS", steps)
    found = fit(A)
    assert found.steps.tolist() == [steps]
    mine = [found.weights[0, 0], *found.means[0], *found.variances[0]]
    assert [x.item() for x in mine] == pytest.approx(STEPS_OF_A[steps - 1], abs=1e-6)


def test_stops_after_a_hundred_steps(monkeypatch):
    """With the tolerance out of reach; and one step less leaves something else."""
    monkeypatch.setattr(gaussian_mixture, "_TOLERANCE", 0.0)
    last = fit(SETS["gamma"][0])
    assert last.steps.tolist() == [100]
    monkeypatch.setattr(gaussian_mixture, "_MAX_STEPS", 99)
    assert not torch.equal(fit(SETS["gamma"][0]).means, last.means)


def test_a_set_is_left_alone_after_its_own_stop():
    """Sets that stop after 3 to 9 steps; going on would move the means of (1, 2) by 0.1."""
    sets = [[1.0, 2.0], A, B, C, ONE_ALONE, SETS["wide"][3]]
    together = fit(*sets)
    assert len(set(together.steps.tolist())) >= 4
    for i, numbers in enumerate(sets):
        alone = fit(numbers)
        assert together.steps[i] == alone.steps[0]
        for name in ("means", "variances", "weights"):
            mine, other = getattr(together, name)[i], getattr(alone, name)[0]
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_questions_to_a_gpu_change_nothing(monkeypatch):
    """A GPU is asked every ten steps whether all have stopped: those that have must not move."""
    sets, rows, step = [[1.0, 2.0], A, B, C, *SETS["wide"][:6]], [], gaussian_mixture._step
    monkeypatch.setattr(gaussian_mixture, "_step", lambda *a: rows.append(len(a[0])) or step(*a))
    often = fit(*sets)
    assert max(rows) == 10 > min(rows) and len(rows) == often.steps.max() > 10
    rows.clear()
    # a CPU is asked at whole steps: here at every tenth
    tenths = [i / 10 for i in range(100)]
    monkeypatch.setattr(gaussian_mixture, "range", lambda _: tenths, raising=False)
    seldom = fit(*sets)
    assert rows[:10] == [10] * 10 and 0 < rows[10] < 10
    for name in ("steps", "means", "variances", "weights", "component"):
        assert torch.equal(getattr(often, name), getattr(seldom, name))


# ---- padding, batches, dtypes


def test_neither_padding_nor_the_batch_matters():
    sets = [s for kind in KINDS for s in SETS[kind][:4] if kind != "equal"]
    together, wide = fit(*sets), fit(*sets, width=150)
    backwards = fit(*sets[::-1])
    for i, numbers in enumerate(sets):
        n = len(numbers)
        alone = fit(numbers)
        for other, row in ((together, i), (wide, i), (backwards, len(sets) - 1 - i)):
            assert torch.equal(other.component[row, :n], alone.component[0])
            assert other.steps[row] == alone.steps[0]
            density = other.log_density[row, :n]
            torch.testing.assert_close(density, alone.log_density[0], rtol=1e-8, atol=1e-8)


def test_numbers_may_stand_anywhere():
    values, present = pad([A], width=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    found, mixed = (
        fit_two_gaussians(values, present),
        fit_two_gaussians(values[:, order], present[:, order]),
    )
    torch.testing.assert_close(mixed.means, found.means)
    assert torch.equal(
        mixed.component[present[:, order]], found.component[:, order][0, present[0, order]]
    )


def test_sets_of_less_than_two_are_not_fitted_and_disturb_nobody():
    found = fit([], A, [0.7], B, width=12)
    assert found.steps.tolist() == [0, 6, 0, 8]
    alone = fit(A, B, width=12)
    for name in ("means", "variances", "weights", "component"):
        assert torch.equal(getattr(found, name)[[1, 3]], getattr(alone, name))
        assert getattr(found, name).isfinite().all()
    assert fit([], [0.7], width=3).steps.tolist() == [0, 0]
    empty = fit_two_gaussians(torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool))
    assert empty.component.shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inside_it_is_float64(dtype):
    found = fit(ONE_ALONE, [12 + 1e-3 * x for x in A], dtype=dtype)
    assert found.means.dtype == found.log_density.dtype == torch.float64
    assert found.steps[0] == 5 and found.component[0, :3].tolist() == [0, 0, 1]
    assert found.means[0].tolist() == pytest.approx([5.1, 7.91], abs=1e-6)
    assert found.variances[0].tolist() == pytest.approx([0.122501, 1e-6], abs=2e-7)
    exact = fit([float(torch.tensor(12 + 1e-3 * x, dtype=dtype)) for x in A])
    assert torch.equal(found.component[1], exact.component[0])


@pytest.mark.parametrize(
    "numbers",
    [[0.0, 0.0], [3e-30, 3e-30, 4e-30], [1e12] * 45, [0.0, 3e38], [1e-3, 1e3, 1e30], [-5.0, 7.0]],
)
def test_nothing_is_too_small_too_large_or_too_equal(numbers):
    found = fit(numbers, width=50, dtype=torch.float32)
    n = len(numbers)
    for x in (found.weights, found.means, found.variances, found.log_density[:, :n]):
        assert x.isfinite().all()
    assert (found.variances >= 1e-6).all() and (found.weights > 0).all()
    assert 2 <= found.steps.item() <= 100


def test_inputs_are_left_alone_and_nothing_is_learned():
    values, present = pad([A, B], dtype=torch.float32)
    values = values.nan_to_num().requires_grad_()
    copies = values.detach().clone(), present.clone()
    found = fit_two_gaussians(values, present)
    assert not found.means.requires_grad and not found.log_density.requires_grad
    assert torch.equal(values, copies[0]) and torch.equal(present, copies[1])
