"""Which of two networks chooses: scores by hand, ties, and groups of one."""

import statistics

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from kd_d2.modeling.detectors.paa_targets import PreAssignment
from kd_d2.projects.lad import choose_costs, fisher_score, std_over_mean


def pre_of(*groups, num_levels=2, num_objects=None):
    """Pre-assigned anchors of (object, level) pairs."""
    pairs = torch.tensor(groups, dtype=torch.long).reshape(-1, 2)
    n = len(pairs)
    return PreAssignment(
        image=torch.zeros(n, dtype=torch.long),
        anchor=torch.arange(n),
        level=pairs[:, 1],
        object=pairs[:, 0],
        classes=torch.zeros(n, dtype=torch.long),
        boxes=torch.zeros(n, 4),
        valid=torch.ones(1, max(n, 1), dtype=torch.bool),
        num_objects=num_objects or (int(pairs[:, 0].max()) + 1 if n else 1),
        num_levels=num_levels,
    )


ONE = [(0, 0)] * 3


def test_the_worked_example():
    own, others = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 1.5, 5])
    scores = [std_over_mean(x, torch.zeros(3, dtype=torch.long), 1).item() for x in (own, others)]
    assert scores == pytest.approx([0.5, 0.871780], abs=1e-6)
    costs, by_peer = choose_costs(own, others, pre_of(*ONE))
    assert torch.equal(costs, others) and by_peer.tolist() == [True, False]
    costs, by_peer = choose_costs(others, own, pre_of(*ONE))
    assert torch.equal(costs, others) and not by_peer.any()


def test_scores_of_many_groups_at_once():
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(7, (60,), generator=generator)
    costs = torch.rand(60, generator=generator) * 3 + 0.1
    scores = std_over_mean(costs, group, 8)
    for g in range(7):
        values = costs[group == g].tolist()
        expected = statistics.stdev(values) / statistics.mean(values)
        assert scores[g].item() == pytest.approx(expected, rel=1e-6)
    assert scores[7].isnan()


def test_fishers_score_is_that_of_the_fitted_gaussians():
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(5, (90,), generator=generator)
    costs = torch.rand(90, generator=generator) * 3 + 0.1
    scores = fisher_score(costs, group, 6)
    for g in range(5):
        x = np.sort(costs[group == g].double().numpy())[:, None]
        fit = GaussianMixture(
            2, weights_init=[0.5, 0.5], means_init=[x[0], x[-1]],
            precisions_init=np.ones((2, 1, 1)),
        ).fit(x)  # fmt: skip
        expected = (fit.means_[1] - fit.means_[0]) ** 2 / fit.covariances_.sum()
        assert scores[g].item() == pytest.approx(expected.item(), rel=1e-6)
    assert scores[5].isnan()


@pytest.mark.parametrize("switch", ["std_mean", "fisher"])
def test_each_object_and_level_by_itself(switch):
    # of object 0 level 0, and of object 1 level 1, the second network separates better
    pre = pre_of(*[(0, 0)] * 4, *[(0, 1)] * 4, *[(1, 1)] * 4)
    apart, close = [0.1, 0.2, 2.5, 2.6], [1.0, 1.1, 1.2, 1.3]
    own = torch.tensor([*close, *apart, *close])
    others = torch.tensor([*apart, *close, *apart])
    costs, by_peer = choose_costs(own, others, pre, switch)
    assert costs.tolist() == pytest.approx([*apart, *apart, *apart])
    assert by_peer.tolist() == [True, False, False, True]


@pytest.mark.parametrize("switch", ["std_mean", "fisher"])
def test_a_single_anchor_goes_to_the_lower_cost(switch):
    pre = pre_of((0, 0), (0, 1), (1, 0))
    own, others = torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 1, 3])
    costs, by_peer = choose_costs(own, others, pre, switch)
    assert costs.tolist() == [1, 1, 3]
    assert by_peer.tolist() == [False, True, False, False]  # equal: the first one's


@pytest.mark.parametrize("switch", ["std_mean", "fisher"])
def test_ties_go_to_the_second_network(switch):
    own = torch.tensor([1.0, 2, 3])
    _, by_peer = choose_costs(own, own.clone(), pre_of(*ONE), switch)
    assert by_peer.tolist() == [True, False]


def test_a_score_that_is_no_number_loses():
    # a mean of 0 gives 0 / 0
    zero, costs = torch.zeros(3), torch.tensor([1.0, 2, 3])
    assert not choose_costs(costs, zero, pre_of(*ONE))[1].any()
    assert not choose_costs(zero, costs, pre_of(*ONE))[1].any()
    bad = torch.tensor([1.0, float("nan"), 3])
    chosen, by_peer = choose_costs(costs, bad, pre_of(*ONE))
    assert torch.equal(chosen, costs) and not by_peer.any()


def test_swapping_the_networks_swaps_the_choice():
    generator = torch.Generator().manual_seed(1)
    pre = pre_of(*[(i % 3, i % 2) for i in range(50)])
    own, others = torch.rand(2, 50, generator=generator) + 0.1
    for switch in ("std_mean", "fisher"):
        costs, by_peer = choose_costs(own, others, pre, switch)
        swapped, by_first = choose_costs(others, own, pre, switch)
        assert torch.equal(costs, swapped)
        assert torch.equal(by_peer, ~by_first)  # all six groups are there, and none is tied


@pytest.mark.parametrize("switch", ["std_mean", "fisher"])
def test_no_anchor_at_all(switch):
    costs, by_peer = choose_costs(torch.zeros(0), torch.zeros(0), pre_of(), switch)
    assert len(costs) == 0 and not by_peer.any()
