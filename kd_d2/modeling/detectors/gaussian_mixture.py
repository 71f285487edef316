"""Two Gaussians fitted to each of many small sets of numbers, all sets at once.

Shapes: S sets, K numbers of a set (padded to the largest count).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Those of scikit-learn's GaussianMixture, as which all of this behaves.
_TOLERANCE = 1e-3
_MAX_STEPS = 100
_VARIANCE_FLOOR = 1e-6
_LEAST_COUNT = 10 * torch.finfo(torch.float64).eps
_LOG_2PI = math.log(2 * math.pi)
# How often to ask a GPU whether all sets have stopped: each time the host waits for it.
_STEPS_BETWEEN_QUESTIONS = 10


@dataclass
class MixtureFit:
    """What :func:`fit_two_gaussians` finds; float64. The 0th Gaussian starts at the low end.

    Attributes:
        weights, means, variances: (S, 2) of the Gaussians.
        steps: (S,) that each set took.
        component: (S, K), 1 where the 1st Gaussian explains a number better than the 0th.
        log_density: (S, K) of the mixture at each number.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    steps: Tensor
    component: Tensor
    log_density: Tensor


@torch.no_grad()
def fit_two_gaussians(values: Tensor, present: Tensor) -> MixtureFit:
    """Expectation maximisation of a mixture of two Gaussians (PAA, arXiv 2007.08103, section 3.2).

    The Gaussians start at the least and the largest number of a set, with equal weights and the
    variance 1 whatever the numbers are. A set stops, and keeps what it has, after the step in which
    the mean log-likelihood of its numbers changes by less than 1e-3, or after 100 steps. So where
    it stops is a part of the answer, and no set sees what else is in the batch. Each variance has
    1e-6 added at each step, so nothing collapses: equal numbers, two numbers and numbers far apart
    are fitted like any other.

    The numbers are those of scikit-learn's ``GaussianMixture(2, weights_init=[0.5, 0.5],
    means_init=[[least], [largest]], precisions_init=[[[1.0]], [[1.0]]])``.

    Args:
        values: (S, K), any floating dtype; float64 inside, as the variance of float32 numbers can
            come out negative.
        present: (S, K), which of them are numbers of the set; sets of less than two are not fitted.

    >>> values = torch.tensor([[0.61, 0.74, 0.80, 0.95, 2.10, 2.25, 2.40, 2.90]])
    >>> fit = fit_two_gaussians(values, torch.ones(1, 8, dtype=torch.bool))
    >>> fit.component.tolist(), fit.steps.tolist()
    ([[0, 0, 0, 0, 1, 1, 1, 1]], [6])
    >>> fit.means
    tensor([[0.7750, 2.4125]], dtype=torch.float64)
    """
    x = values.double().where(present, 0.0)
    count = present.sum(1)
    # sets without numbers are not fitted, and need to be finite all the same
    means = torch.stack(
        (x.where(present, math.inf).amin(1), x.where(present, -math.inf).amax(1))
    ).where(count > 0, 0.0)
    mixture = torch.stack((torch.full_like(means, 0.5), means, torch.ones_like(means)))  # (3, 2, S)
    likelihood = torch.full_like(means[0], -math.inf)
    steps = torch.zeros_like(count)
    running = count >= 2
    rows = torch.arange(len(x), device=x.device)
    every = 1 if x.device.type == "cpu" else _STEPS_BETWEEN_QUESTIONS
    for step in range(_MAX_STEPS):
        if step % every == 0:
            rows = rows[running[rows]]
            if not len(rows):
                break
            x_left, present_left, count_left = x[rows], present[rows], count[rows]
        go, before = running[rows], mixture[:, :, rows]
        updated, mean = _step(x_left, present_left, count_left, before)
        mixture[:, :, rows] = updated.where(go, before)
        steps[rows] += go
        running[rows] = go & ((mean - likelihood[rows]).abs() >= _TOLERANCE)
        likelihood[rows] = mean
    joint = _log_joint(x, mixture)
    weights, means, variances = mixture.transpose(1, 2)
    return MixtureFit(
        weights,
        means,
        variances,
        steps,
        component=(joint[1] > joint[0]).long(),
        log_density=torch.logaddexp(joint[0], joint[1]),
    )


def _step(x: Tensor, present: Tensor, count: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """One step: the updated mixture (3, 2, S), and the mean log-likelihood (S,) before it."""
    joint = _log_joint(x, mixture)
    total = torch.logaddexp(joint[0], joint[1])
    share = (joint - total).exp_().where(present, 0.0)  # (2, S, K)
    counts = share.sum(-1) + _LEAST_COUNT
    means = (share * x).sum(-1) / counts
    variances = (share * (x - means[..., None]).square_()).sum(-1) / counts + _VARIANCE_FLOOR
    mean = total.where(present, 0.0).sum(1) / count
    return torch.stack((counts / counts.sum(0), means, variances)), mean


def _log_joint(x: Tensor, mixture: Tensor) -> Tensor:
    """Logarithm (2, S, K) of each Gaussian's density times its weight."""
    weights, means, variances = mixture[..., None]
    distance = (x - means).square_() / variances
    return weights.log() - 0.5 * (_LOG_2PI + variances.log() + distance)
