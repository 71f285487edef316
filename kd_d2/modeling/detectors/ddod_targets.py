"""What DDOD learns, as pure functions: who learns which box, and how much each level counts.

Shapes: N images, R anchors of all levels together, M boxes of an image (padded with zero boxes to
the largest count), L levels.
"""

import torch
from torch import Tensor

from kd_d2.modeling.detectors.atss_targets import INSIDE_MARGIN
from kd_d2.modeling.detectors.fcos_targets import distances_to_boxes


@torch.no_grad()
def match_by_quality(
    centres: Tensor, valid: Tensor, quality: Tensor, boxes: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Gives each anchor the box that it learns, by how well it predicts it already.

    Candidates of a box are the ``k`` anchors of highest quality of all levels jointly. Its
    positives are those whose quality is not 0 and whose centre lies inside the box. An anchor that
    is positive for several boxes learns the one that it predicts best, the first of equal ones.
    Where several anchors are equally good and not all of them fit, ``torch.topk`` chooses.

    Args:
        centres: (R, 2) of the anchors.
        valid: (N, R), which anchors take part in each image.
        quality: (N, M, R), not negative, see :func:`kd_d2.modeling.quality.quality_score`.
        boxes: (N, M, 4) with M >= 1. Zero boxes have no positives, having no inside.

    Returns:
        index of the matched box (N, R), arbitrary without one; whether there is one (N, R).
    """
    quality = quality.where(valid[:, None], 0.0)
    candidates, index = quality.topk(min(k, len(centres)), dim=-1)  # (N, M, k)
    to_box = distances_to_boxes(centres[index], boxes.float()[:, :, None])
    candidates = candidates.where(to_box.amin(-1) > INSIDE_MARGIN, 0.0)
    claims = torch.zeros_like(quality).scatter_(-1, index, candidates)
    best, owner = claims.max(dim=1)
    return owner, best > 0


def level_weights(positives: Tensor) -> Tensor:
    """Factors (L,) of the losses of the levels: 1 for the one with most positives, 2 for the least.

    Args:
        positives: (L,) counts.

    >>> level_weights(torch.tensor([50, 20, 10])), level_weights(torch.tensor([3, 3]))
    (tensor([1.0000, 1.7500, 2.0000]), tensor([2., 2.]))
    """
    above = (positives - positives.min()).float()
    return 2 - above / (above.max() + 1e-10)
