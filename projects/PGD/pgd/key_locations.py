"""Which locations matter for an object, by the teacher's predictions (PGD, section 3.2).

Shapes: N images, A locations of all levels together, M objects of an image (padded to the largest
count), k key locations of an object.
"""

import torch
from torch import Tensor

# Against a singular covariance, when key locations lie on a line.
_EPS = 1e-10
# Key locations are moved by up to half of this before the fit, in pixels.
_JITTER = 0.1


def log_quality(log_probability: Tensor, log_iou: Tensor, exponent: float) -> Tensor:
    """``log(p^(1-xi) IoU^xi)``, which ranks as the quality itself and costs no powers.

    >>> import torch
    >>> p, iou = torch.tensor([0.5, 0.25]), torch.tensor([0.16, 0.64])
    >>> log_quality(p.log(), iou.log(), 0.5).exp()
    tensor([0.2828, 0.4000])
    """
    return torch.lerp(log_probability, log_iou, exponent)


def select_key_locations(log_quality: Tensor, valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` locations of highest quality of each object, over all levels jointly.

    Args:
        log_quality: (N, M, A), finite. Among equal ones it is torch's business which are taken.
        valid: (N, A), which locations may be chosen.

    Returns:
        index (N, M, min(k, A)); which of them are valid, where an image has fewer than k.
    """
    ranked = log_quality.masked_fill(~valid[:, None], -torch.inf)
    best, index = ranked.topk(min(k, ranked.shape[-1]), dim=-1)
    return index, best.isfinite()


def gaussian_weights(points: Tensor, counted: Tensor, jitter: bool = True) -> Tensor:
    """A normal distribution is fitted to an object's key locations, and says how central each is.

    ``exp(-d / 2)``, d being the squared Mahalanobis distance from the mean; the covariance is the
    maximum-likelihood one (divided by k). Not normalised: 1 at the mean.

    Args:
        points: (..., k, 2) x, y in pixels.
        counted: (..., k), the points that take part; the others weigh 0.
        jitter: fit points that are moved by up to 0.05 pixels, as PGD's release does, so that the
            covariance is not singular.

    Returns:
        (..., k).

    >>> square = torch.tensor([[16.0, 16], [24, 16], [16, 24], [24, 32]])
    >>> gaussian_weights(square, torch.ones(4, dtype=torch.bool), jitter=False)
    tensor([0.4966, 0.2725, 0.4966, 0.2725])
    """
    fitted = points + (torch.rand_like(points) - 0.5) * _JITTER if jitter else points
    fitted, points, counted = fitted.double(), points.double(), counted[..., None].double()
    count = counted.sum(-2, keepdim=True).clamp(min=1)  # (..., 1, 1)
    total = (fitted * counted).sum(-2, keepdim=True)
    # Deviations are multiplied by the count instead of dividing the total: exact for whole pixels,
    # so that points on a line have no area at all.
    dx, dy = ((count * fitted - total) * counted).split(1, -1)
    xx, xy, yy = (product.sum(-2, keepdim=True) for product in (dx * dx, dx * dy, dy * dy))
    determinant = (xx * yy - xy * xy).clamp(min=0) / count**6
    dx, dy = (count * points - total).split(1, -1)
    squared = (dx * (yy * dx - xy * dy) + dy * (xx * dy - xy * dx)) / count**5
    squared = squared.clamp(min=0) / (determinant + _EPS)
    return (torch.exp(-0.5 * squared) * counted).squeeze(-1).float()
