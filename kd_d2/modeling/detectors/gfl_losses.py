"""The losses of generalized focal loss, as pure functions: a class score that says how good its box
is, and a distribution over bins in place of each distance.

Shapes: B bins of a side, standing for the distances 0, 1, ..., B - 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# A target stays this far below the last bin, so that there is a bin above it.
_LAST_BIN_MARGIN = 0.1


def integral(logits: Tensor) -> Tensor:
    """Expectation (...) of the distances of the bins (GFL, eq. 5).

    Args:
        logits: (..., B).

    >>> integral(torch.tensor([0.0, 0.0, 0.0])), integral(torch.tensor([-99.0, 0.0, 0.0]))
    (tensor(1.), tensor(1.5000))
    """
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    # not a matrix product, which autocast would round
    return (logits.softmax(-1) * bins).sum(-1)


def quality_focal_loss(logits: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """|target - p|^beta times the cross entropy of the probability p (GFL, eq. 1).

    A focal loss for targets between 0 and 1. It has gradients through both factors.

    Args:
        logits, targets: of equal shapes.
        beta: how little the targets count that are nearly reached; at least 1.

    Returns:
        of their shape.

    >>> quality_focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.5]))
    tensor([0.1733, 0.0000])
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (targets - logits.sigmoid()).abs() ** beta * entropy


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the two bins around a distance, by how near they are (GFL, eq. 6).

    Args:
        logits: (..., B).
        targets: (...) in bins; those that no two bins surround are moved to where they do.

    Returns:
        (...).

    >>> distribution_focal_loss(torch.tensor([0.0, 0.0, -99.0]), torch.tensor(0.25))
    tensor(0.6931)
    >>> distribution_focal_loss(torch.tensor([0.0, 0.0, -10.0]), torch.tensor(99.0))
    tensor(9.6932)
    """
    targets = targets.clamp(0, logits.shape[-1] - 1 - _LAST_BIN_MARGIN)
    left = targets.floor()
    index = torch.stack((left, left + 1), dim=-1).long()
    to_left, to_right = logits.log_softmax(-1).gather(-1, index).unbind(-1)
    return -((left + 1 - targets) * to_left + (targets - left) * to_right)
