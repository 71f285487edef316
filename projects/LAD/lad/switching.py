"""Which of two networks says which anchors learn an object (CoLAD, arXiv 2108.10520, section 3.2).

Shapes: P pre-assigned anchors of the batch, G groups of them: those of an object on a level.
"""

import torch
from torch import Tensor

from kd_d2.modeling.detectors.gaussian_mixture import fit_two_gaussians
from kd_d2.modeling.detectors.paa_targets import PreAssignment, rank_in_groups


def std_over_mean(costs: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Standard deviation of the costs of each group in units of their mean.

    The larger, the better a network tells good anchors from bad ones.

    Args:
        costs, group: (P,).

    Returns:
        (G,) float64; not a number for groups of less than two, and where the mean is 0.

    >>> costs = torch.tensor([1.0, 2, 3, 1, 1.5, 5])
    >>> std_over_mean(costs, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    tensor([0.5000, 0.8718], dtype=torch.float64)
    """
    costs = costs.double()
    count = _sum(torch.ones_like(costs), group, num_groups)
    mean = _sum(costs, group, num_groups) / count
    variance = _sum((costs - mean[group]) ** 2, group, num_groups) / (count - 1)
    return variance.sqrt() / mean


def fisher_score(costs: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """How far apart the two Gaussians of each group's costs are: (mu+ - mu-)^2 / (var+ + var-).

    They are fitted to all costs of the group. The host waits once for a GPU, to learn how many
    those are.

    Args:
        costs, group: (P,).

    Returns:
        (G,) float64; not a number for groups of less than two.

    >>> costs = torch.tensor([0.5, 0.6, 2.5, 2.6, 1.0, 1.1, 1.2, 1.3])
    >>> score = fisher_score(costs, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 2)
    >>> bool(score[0] > score[1])
    True
    """
    order, rank = rank_in_groups(costs, group)
    width = int(rank.max()) + 1 if len(rank) else 1
    table = costs.new_full((num_groups, width), torch.inf).double()
    table[group[order], rank] = costs[order].double()
    present = table.isfinite()
    fit = fit_two_gaussians(table.where(present, 0.0), present)
    distance = (fit.means[:, 1] - fit.means[:, 0]) ** 2
    return (distance / fit.variances.sum(1)).where(present.sum(1) >= 2, torch.nan)


SWITCHES = {"std_mean": std_over_mean, "fisher": fisher_score}


@torch.no_grad()
def choose_costs(
    own: Tensor, others: Tensor, pre: PreAssignment, switch: str = "std_mean"
) -> tuple[Tensor, Tensor]:
    """The costs by which the labels of both networks are chosen.

    Of each object and level those of the network that separates the anchors better. Where there is
    one anchor, the lower cost counts. Ties go to the second network; where a score is not a number,
    the first one's costs are taken.

    Args:
        own, others: (P,) costs of the first and of the second network.
        switch: a key of ``SWITCHES``.

    Returns:
        costs (P,); which groups (G,) are the second network's.
    """
    group, num_groups = pre.group, pre.num_groups
    score = SWITCHES[switch]
    better = score(others, group, num_groups) >= score(own, group, num_groups)
    count = _sum(torch.ones_like(own), group, num_groups)
    lower = _sum((others < own).float(), group, num_groups) > 0
    second = torch.where(count > 1, better, lower) & (count > 0)
    return others.where(second[group], own), second


def _sum(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    return values.new_zeros(num_groups).index_add_(0, group, values)
