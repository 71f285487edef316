"""Which of the student's levels fits the teacher's feature of a region (G-DetKD, arXiv 2108.07482).

Shapes: R regions, L levels of the student, D numbers of a key, C channels, h x w cells of a pooled
region.
"""

import torch
from torch import Tensor


def level_weights(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
    """Softmax over the levels of ``<k_s, k_t> / tau``: the semantic match of each level.

    The weights of a region sum to 1. Public re-implementations since 2022 take the softmax over
    the regions, which is another method.

    Args:
        student: (R, L, D) keys of the student's levels.
        teacher: (R, D) keys of the teacher's features.
        temperature: tau.

    Returns:
        (R, L), float32.

    >>> student = torch.tensor([[[1.0, 0], [0, 2]], [[1, 1], [3, 0]]])
    >>> teacher = torch.tensor([[0.0, 1], [1, 0]])
    >>> torch.set_printoptions(precision=6)
    >>> level_weights(student, teacher, 1.0)
    tensor([[0.119203, 0.880797],
            [0.119203, 0.880797]])
    >>> torch.set_printoptions(profile="default")
    """
    # no matrix product, which autocast would do in half precision
    similarity = (student.float() * teacher.float()[:, None]).sum(-1)
    return (similarity / temperature).softmax(1)


def aggregate_levels(features: Tensor, weights: Tensor) -> Tensor:
    """Sum over the levels of weight times feature: (R, L, C, h, w), (R, L) -> (R, C, h, w).

    In float32 unless autocast is in force.
    """
    return torch.einsum("rlchw,rl->rchw", features.float(), weights)


def imitation_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of each region (R,); its mean over the regions is the loss of SGFI.

    Args:
        student, teacher: (R, C, h, w); the teacher's side is a constant.

    >>> levels = torch.tensor([[[1.0, 0], [0, 2]], [[1, 1], [3, 0]]])
    >>> target = torch.tensor([[0.0, 1], [1, 0]])
    >>> weights = level_weights(levels, target, 1.0)
    >>> features, target = levels[..., None, None], target[..., None, None]
    >>> error = imitation_error(aggregate_levels(features, weights), target)
    >>> [round(x, 6) for x in (*error.tolist(), error.mean().item())]
    [0.297117, 1.558711, 0.927914]
    """
    return (student.float() - teacher.detach().float()).square().flatten(1).mean(1)


def entropy(weights: Tensor) -> Tensor:
    """Mean entropy of the weights (R, L) of a region in nats, from 0 (one level) to log L.

    >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor(0.3466)
    """
    return torch.special.entr(weights).sum(1).mean()
