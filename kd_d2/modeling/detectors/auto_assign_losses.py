"""The losses of AutoAssign (arXiv 2007.03496, section 3), as pure functions.

No location is assigned to an object. Every object weighs the locations inside it by a prior and by
how well they predict it already, and all the weights are part of the losses.

Shapes: N images, R locations of all levels together, M boxes of an image (padded with zero boxes to
the largest count of the batch), K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-12
_CONFIDENCE_SHARPNESS = 3.0


def centre_prior(
    points: Tensor, strides: Tensor, boxes: Tensor, mean: Tensor, sigma: Tensor, inside: Tensor
) -> Tensor:
    """How near each location is to the centre of each object: a Gaussian, 0 outside the box.

    Args:
        points: (R, 2) x, y.
        strides: (R,) stride of the location's level, the unit of the distance.
        boxes: (N, M, 4).
        mean: (N, M, 2) the place of the maximum, of the object's class, in strides from its centre.
        sigma: (N, M, 2) the deviations, likewise.
        inside: (N, M, R).

    Returns:
        (N, M, R) between 0 and 1.

    >>> zero, one, inside = torch.zeros(1, 1, 2), torch.ones(1, 1, 2), torch.ones(1, 1, 2).bool()
    >>> points, box = torch.tensor([[8.0, 8.0], [8.0, 16.0]]), torch.tensor([[[0.0, 0, 16, 16]]])
    >>> centre_prior(points, torch.full((2,), 8.0), box, zero, one, inside)
    tensor([[[1.0000, 0.6065]]])
    """
    exponent = 0.0
    for axis in (0, 1):  # one axis at a time: an (N, M, R, 2) tensor would be large
        centres = (boxes[..., axis] + boxes[..., axis + 2]) * 0.5
        offsets = (points[:, axis] - centres[..., None]) / strides - mean[..., axis, None]
        exponent = exponent - offsets**2 / (2 * sigma[..., axis, None] ** 2)
    return exponent.exp().where(inside, 0.0)


def positive_loss(confidence: Tensor, prior: Tensor) -> Tensor:
    """-ln of the mean confidence of each object's locations.

    The mean is weighted by the prior and by the confidence itself, with gradients through both.

    Args:
        confidence: (N, M, R) probability that the location finds the object: its class and box.
        prior: (N, M, R), 0 outside the object.

    Returns:
        (N, M), 100 for an object without a location.

    >>> positive_loss(torch.tensor([0.5, 0.5, 0.9]), torch.tensor([1.0, 0.2, 0.0]))
    tensor(0.6931)
    """
    weights = (_CONFIDENCE_SHARPNESS * confidence).exp() * prior
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=_EPS)
    return cross_entropy((weights * confidence).sum(-1), 1.0)


@torch.no_grad()
def negative_weights(iou: Tensor, inside: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """How much each location is background of each class.

    Within an object, for its class: from 0 where the best box is to 1 where the worst is. 1
    everywhere else. Of several objects of a class around a location the last one counts.

    Args:
        iou: (N, R) of the predicted box, the largest with any object of the image.
        inside: (N, M, R) whether the location is in the object.
        classes: (N, M).

    Returns:
        (N, K, R) between 0 and 1.

    >>> inside = torch.tensor([[[True, True, True, False]]])
    >>> iou = torch.tensor([[0.5, 0.75, 0.0, 0.9]])
    >>> negative_weights(iou, inside, torch.tensor([[1]]), 2)[0, 1]
    tensor([0.6667, 0.0000, 1.0000, 1.0000])
    """
    certainty = (1 / (1 - iou).clamp(min=_EPS))[:, None]  # (N, 1, R)
    low = certainty.where(inside, float("inf")).amin(-1, keepdim=True)
    high = certainty.where(inside, 0.0).amax(-1, keepdim=True)
    scaled = (certainty - low + _EPS) / (high - low + _EPS)  # (N, M, R)

    # number of the object that rules a location for a class; 0 is no object, where the weight is 1
    numbers = torch.arange(1, inside.shape[1] + 1, device=inside.device)[:, None] * inside
    ruler = numbers.new_zeros(len(iou), num_classes, iou.shape[1])
    ruler.scatter_reduce_(1, classes[..., None].expand_as(numbers), numbers, "amax")
    return torch.cat((torch.ones_like(certainty), 1 - scaled), dim=1).gather(1, ruler)


def negative_loss(probabilities: Tensor, weights: Tensor) -> Tensor:
    """Sum of x**2 * -ln(1 - x), x being the weighted probability: a focal loss.

    Args:
        probabilities: (N, K, R) of a class and of an object.
        weights: (N, K, R).

    >>> negative_loss(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    tensor(0.1733)
    """
    wrong = probabilities * weights
    return (wrong**2 * cross_entropy(wrong, 0.0)).sum()


def centre_loss(prior: Tensor, inside: Tensor, counts: Tensor) -> Tensor:
    """Objects of an image by the sum of their prior, so that it cannot vanish; mean over images.

    Args:
        prior, inside: (N, M, R).
        counts: (N,) objects of each image. One without a location in an object gives 0.

    >>> prior = torch.tensor([[[0.5, 0.75]], [[0.0, 0.0]]])
    >>> centre_loss(prior, prior > 0, torch.tensor([1, 0]))
    tensor(0.4000)
    """
    losses = counts / prior.sum((1, 2)).clamp(min=_EPS)
    return losses.where(inside.flatten(1).any(1), 0.0).mean()


def cross_entropy(probabilities: Tensor, target: float) -> Tensor:
    """Binary cross entropy (...) of probabilities, whose logarithms are at least -100.

    PyTorch's, which refuses float16's autocast, and stops a GPU for good at a number that rounding
    has lifted above 1, or at NaN. Here the former is 1, and NaN gives NaN.

    Args:
        target: 0 or 1.

    >>> cross_entropy(torch.tensor([0.5, 0.0]), 1.0)
    tensor([  0.6931, 100.0000])
    """
    allowed = probabilities.where(probabilities <= 1, 1.0)
    with torch.autocast(allowed.device.type, enabled=False):
        targets = allowed.new_full((), target).expand_as(allowed)
        loss = F.binary_cross_entropy(allowed, targets, reduction="none")
    return loss + 0 * probabilities
