"""What PAA learns, as pure functions: which anchors an object may have, and which of them it gets.

Shapes: N images, R anchors of all levels together, M boxes of an image (padded with zero boxes to
the largest count), P pre-assigned anchors of the batch, K classes, L levels.
"""

from dataclasses import dataclass

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from kd_d2.modeling.detectors.fcos_targets import distances_from_origin, giou_loss_of_distances
from kd_d2.modeling.detectors.gaussian_mixture import fit_two_gaussians
from kd_d2.modeling.quality import pairwise_iou

# An object narrower or lower than so many pixels is passed over: with no area, it would tie with
# every anchor.
_LEAST_SIZE = 1.0
# Pairs of an anchor and an object that are looked at in one go: 128 MiB of float32.
_MOST_PAIRS = 2**25
# Log densities that differ by less than this share count as equal.
_EQUAL_DENSITY = 1e-9


@dataclass
class PreAssignment:
    """The anchors that may become positive, each with the one object that it may learn.

    Attributes:
        image, anchor, level: (P,) where they are; anchors are counted over all levels of an image.
        object: (P,) number of the object, image * M + its number in the image.
        classes, boxes: (P,) and (P, 4) of the objects.
        valid: (N, R), which anchors take part in each image.
        num_objects, num_levels: N * M and L.
        group, num_groups: (P,) number of the object and level together, and how many there may be.
    """

    image: Tensor
    anchor: Tensor
    level: Tensor
    object: Tensor
    classes: Tensor
    boxes: Tensor
    valid: Tensor
    num_objects: int
    num_levels: int

    @property
    def group(self) -> Tensor:
        return self.object * self.num_levels + self.level

    @property
    def num_groups(self) -> int:
        return self.num_objects * self.num_levels


@torch.no_grad()
def preassign(
    anchors: list[Tensor], valid: Tensor, boxes: Tensor, classes: Tensor, threshold: float = 0.1
) -> PreAssignment:
    """Gives each anchor the object that it may learn (PAA, arXiv 2007.08103, section 3.2).

    That is the one with the largest IoU, the first of equal ones, if that reaches the threshold.
    Then every object, in order, takes all anchors with which its IoU is at its largest, whatever
    that is and whoever has them. So a small object has anchors, too; but for those that a later
    object of equal claim takes from it. (Detectron2's ``Matcher`` makes such anchors positive
    without giving them to the object.)

    The host waits once for a GPU, to learn P.

    Args:
        anchors: (R_l, 4) of each level.
        valid: (N, R).
        boxes, classes: (N, M, 4) and (N, M) with M >= 1. Boxes below a pixel are passed over.
    """
    squares = torch.cat(anchors).float()
    owner = _owners(squares, valid, boxes.float(), threshold)
    image, anchor = (owner >= 0).nonzero(as_tuple=True)
    owner = owner[image, anchor]
    sizes = torch.tensor([len(a) for a in anchors]).to(squares.device, non_blocking=True)
    return PreAssignment(
        image=image,
        anchor=anchor,
        level=torch.bucketize(anchor, sizes.cumsum(0), right=True),
        object=image * boxes.shape[1] + owner,
        classes=classes[image, owner],
        boxes=boxes[image, owner].float(),
        valid=valid,
        num_objects=boxes.shape[0] * boxes.shape[1],
        num_levels=len(anchors),
    )


def _owners(squares: Tensor, valid: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """Number of the object (N, R) of each anchor in its image, -1 without one."""
    best = squares.new_full(valid.shape, 0.0)
    owner = torch.full_like(best, -1, dtype=torch.long)
    claimed = owner.clone()  # by the objects' own right
    per_pass = max(1, _MOST_PAIRS // max(1, valid.numel()))
    for start in range(0, boxes.shape[1], per_pass):
        some = boxes[:, start : start + per_pass]
        large = ((some[..., 2:] - some[..., :2]) >= _LEAST_SIZE).all(-1)[..., None]
        iou = pairwise_iou(squares.expand(len(boxes), -1, -1), some)  # (N, m, R)
        iou = iou.where(large & valid[:, None], -1.0)
        numbers = torch.arange(start, start + some.shape[1], device=iou.device)[:, None]
        highest = iou.amax(1)
        first = numbers.where(iou == highest[:, None], boxes.shape[1]).amin(1)
        owner = first.where(highest > best, owner)
        best = torch.maximum(best, highest)
        ties = (iou == iou.amax(2, keepdim=True)) & (iou > 0)
        claimed = torch.maximum(claimed, numbers.where(ties, -1).amax(1))
    return claimed.where(claimed >= 0, owner.where(best >= threshold, -1))


@torch.no_grad()
def anchor_costs(
    logits: Tensor,
    predicted: Tensor,
    classes: Tensor,
    boxes: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_weight: float = 1.3,
) -> Tensor:
    """How badly anchors predict their objects (PAA, eq. 2): focal loss of all classes + GIoU loss.

    Args:
        logits: (P, K).
        predicted: (P, 4), not clipped.
        classes, boxes: (P,) and (P, 4) of the objects.

    Returns:
        (P,) float32.

    >>> logits, predicted = torch.tensor([[0.0, -2, -2]]), torch.tensor([[0.0, 0, 10, 10]])
    >>> anchor_costs(logits, predicted, torch.tensor([0]), torch.tensor([[0.0, 0, 10, 20]]))
    tensor([0.6960])
    """
    one_hot = classes[:, None] == torch.arange(logits.shape[1], device=logits.device)
    focal = sigmoid_focal_loss(logits.float(), one_hot.float(), alpha, gamma).sum(1)
    sides = (distances_from_origin(x.float()) for x in (predicted, boxes))
    return focal + box_weight * giou_loss_of_distances(*sides)


def rank_in_groups(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Sorts by group and, within it, by value; equal ones stay in order.

    Args:
        values, group: (P,).

    Returns:
        the order (P,); place (P,) in its group of each in that order, from 0.

    >>> rank_in_groups(torch.tensor([5.0, 4, 3, 2]), torch.tensor([0, 0, 1, 0]))
    (tensor([3, 1, 0, 2]), tensor([0, 1, 2, 0]))
    """
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    group = group[order]
    return order, torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)


@torch.no_grad()
def cheapest_of_each_level(
    costs: Tensor, pre: PreAssignment, topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of each object: the ``topk`` cheapest pre-assigned anchors of every level.

    Those with costs that are not finite are none. Equal costs keep the anchors' order.

    Args:
        costs: (P,).

    Returns:
        costs (N * M, L * topk), ascending; which of them are candidates, the others being behind;
        numbers (N * M, L * topk) of the pre-assigned anchors.
    """
    groups = pre.num_groups
    # a row for each object and level; what is no candidate goes to one behind all
    group = pre.group.where(costs.isfinite(), groups)
    order, rank = rank_in_groups(costs, group)
    row = group[order].where(rank < topk, groups)
    slot = row * topk + rank.where(row < groups, 0)
    table = costs.new_full(((groups + 1) * topk,), torch.inf).scatter_(0, slot, costs[order])
    number = torch.zeros_like(table, dtype=torch.long).scatter_(0, slot, order)
    shape = pre.num_objects, pre.num_levels * topk
    table, number = (x[: groups * topk].view(shape) for x in (table, number))
    table, order = table.sort(dim=1, stable=True)
    return table, table.isfinite(), number.gather(1, order)


@torch.no_grad()
def split_candidates(
    costs: Tensor, present: Tensor, split: str = "filtered", single: str = "drop"
) -> Tensor:
    """Which candidates become positive: the cheap Gaussian's, up to its peak (PAA, figure 3 c).

    Args:
        costs: (S, C) of the candidates of each object, ascending.
        present: (S, C), which of them are candidates; they come first.
        split: "filtered": the members of the cheap Gaussian up to the one of highest density; of
            all, the cheapest may thus be negative, where it lies alone. "prefix": all up to that
            one, and all if the cheap Gaussian has no members, as in PAA's first release.
        single: what becomes of an object's only candidate: "drop" or "keep" it.

    >>> costs = torch.tensor([[0.61, 0.74, 0.80, 0.95, 2.10, 2.25, 2.40, 2.90]])
    >>> split_candidates(costs, costs < 9).tolist()
    [[True, True, True, False, False, False, False, False]]
    """
    fit = fit_two_gaussians(costs, present)
    cheap = present & (fit.component == 0)
    density = fit.log_density.where(cheap, -torch.inf)
    highest = density.amax(1, keepdim=True)
    margin = _EQUAL_DENSITY * highest.abs().clamp(min=1)
    at_peak = cheap & (density >= highest - margin)
    position = torch.arange(costs.shape[1], device=costs.device)
    peak = position.where(at_peak, costs.shape[1]).amin(1, keepdim=True)
    if split == "filtered":
        positive = cheap & (position <= peak)
    else:  # a peak behind all of them takes all
        positive = present & (position <= peak)
    count = present.sum(1, keepdim=True)
    alone = present & (count == 1) & (single == "keep")
    return (positive & (count >= 2)) | alone


@torch.no_grad()
def select_positives(
    costs: Tensor, pre: PreAssignment, topk: int, split: str = "filtered", single: str = "drop"
) -> Tensor:
    """Which pre-assigned anchors (P,) become positive, by their costs (P,).

    The other arguments are those of :func:`cheapest_of_each_level` and :func:`split_candidates`.
    """
    table, present, number = cheapest_of_each_level(costs, pre, topk)
    positive = split_candidates(table, present, split, single)
    # one place more, for all that are not chosen
    chosen = torch.zeros(len(costs) + 1, dtype=torch.bool, device=costs.device)
    return chosen.index_fill_(0, number.where(positive, len(costs)).flatten(), True)[:-1]
