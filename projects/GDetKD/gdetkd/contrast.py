"""Every region is to be told from all others (CKD: G-DetKD, arXiv 2108.07482).

Shapes: R regions of this process, M vectors of the teacher, of which the first R are theirs.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torch.nn import functional as F


def contrastive_logits(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cosines over the temperature, (R, D), (M, D) -> (R, M), float32."""
    student, teacher = (F.normalize(x.float(), dim=1) for x in (student, teacher))
    return student @ teacher.T / temperature


def contrastive_loss(logits: Tensor, excluded: Tensor | None = None) -> Tensor:
    """InfoNCE of each region: ``-log(g_ii / sum_j g_ij)`` with ``g = exp(logits)``.

    Numerator and denominator hold the region's own pair, which is therefore never excluded. (In
    public re-implementations the exclusion takes it out of the denominator, and the loss becomes
    negative.)

    Args:
        logits: (R, M), those of its own pair on the diagonal.
        excluded: (R, M) bool, pairs that are no negatives.

    Returns:
        (R,).

    >>> student = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]])
    >>> teacher = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0, 1]])
    >>> def mean(queue=(), temperature=0.5, excluded=None):
    ...     all_vectors = torch.cat((teacher, torch.tensor(queue).view(-1, 2)))
    ...     logits = contrastive_logits(student, all_vectors, temperature)
    ...     return round(contrastive_loss(logits, excluded).mean().item(), 6)
    >>> mean(), mean(temperature=0.07)
    (0.777119, 0.199522)
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
    >>> excluded = overlapping(boxes, torch.zeros(3), threshold=0.5)
    >>> mean(excluded=excluded)
    0.482722
    >>> mean(queue=[[-1.0, 0], [0, -1]], excluded=F.pad(excluded, (0, 2)))
    0.577552
    """
    if excluded is not None:
        logits = without_excluded(logits, excluded)
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target, reduction="none")


def without_excluded(logits: Tensor, excluded: Tensor) -> Tensor:
    """Logits (R, M), of which the excluded are ``-inf``; a region's own pair never is."""
    own = torch.arange(len(logits), device=logits.device)
    excluded = excluded.clone()
    excluded[own, own] = False
    return logits.masked_fill(excluded, -torch.inf)


@torch.no_grad()
def overlapping(boxes: Tensor, images: Tensor, threshold: float) -> Tensor:
    """Pairs of different boxes of one image whose IoU is above a threshold.

    They may show the same object, so they are not to be told apart.

    Args:
        boxes: (R, 4).
        images: (R,) number of the image of each.

    Returns:
        (R, R) bool, with False on the diagonal.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    >>> overlapping(boxes, torch.tensor([0, 0, 1]), threshold=0.5)
    tensor([[False,  True, False],
            [ True, False, False],
            [False, False, False]])
    """
    boxes = Boxes(boxes)
    found = (pairwise_iou(boxes, boxes) > threshold) & (images[:, None] == images)
    return found.fill_diagonal_(False)
