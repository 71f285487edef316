"""Targets of PAA against loops over anchors and objects, and against hand-computed values."""

import math

import pytest
import torch
from paa_cases import (
    owners_of,
    random_objects,
    slow_candidates,
    slow_cost,
    slow_positives,
    slow_preassign,
    slow_split,
    squares,
)

from kd_d2.modeling.detectors import paa_targets
from kd_d2.modeling.detectors.paa_targets import (
    PreAssignment,
    anchor_costs,
    cheapest_of_each_level,
    preassign,
    select_positives,
    split_candidates,
)


def assign(anchors, boxes, valid=None, **kwargs):
    """Object of each anchor of one image."""
    boxes = torch.tensor([boxes], dtype=torch.float32)
    valid = torch.ones(1, sum(map(len, anchors)), dtype=torch.bool) if valid is None else valid
    pre = preassign(anchors, valid, boxes, torch.zeros(boxes.shape[:2]).long(), **kwargs)
    return owners_of(pre, boxes.shape[1])[0]


def by_hand(objects, levels, num_levels=None):
    """A pre-assignment of one image by numbers of objects and levels of its anchors."""
    objects, levels = torch.tensor(objects), torch.tensor(levels)
    index = torch.arange(len(objects))
    return PreAssignment(
        image=torch.zeros_like(index),
        anchor=index,
        level=levels,
        object=objects,
        classes=torch.zeros_like(index),
        boxes=torch.zeros(len(index), 4),
        valid=torch.ones(1, len(index), dtype=torch.bool),
        num_objects=int(objects.max()) + 1,
        num_levels=num_levels or int(levels.max()) + 1,
    )


# ---- pre-assignment


@pytest.mark.parametrize("seed", range(4))
def test_preassignment_equals_loops(seed, monkeypatch):
    anchors, (boxes, classes) = squares(96, 128), random_objects(seed)
    flat = torch.cat(anchors).tolist()
    valid = torch.rand(4, len(flat), generator=torch.Generator().manual_seed(seed)) < 0.9
    pre = preassign(anchors, valid, boxes, classes)
    found = owners_of(pre, 8)
    for n in range(4):
        assert found[n] == slow_preassign(flat, valid[n].tolist(), boxes[n].tolist())
    assert {None} < set(found[0]) <= {0, 1, 2, 3, None} and set(found[3]) == {None}
    sizes = torch.tensor([len(a) for a in anchors])
    levels = torch.arange(3).repeat_interleave(sizes)
    assert torch.equal(pre.level, levels[pre.anchor])
    assert torch.equal(pre.boxes, boxes.view(-1, 4)[pre.object])
    assert torch.equal(pre.classes, classes.view(-1)[pre.object])
    assert (pre.num_objects, pre.num_levels, pre.valid is valid) == (32, 3, True)
    # any number of objects in one pass
    for pairs in (1, 2 * valid.numel(), 5 * valid.numel()):
        monkeypatch.setattr(paa_targets, "_MOST_PAIRS", pairs)
        again = preassign(anchors, valid, boxes, classes)
        for name in ("image", "anchor", "level", "object", "classes", "boxes"):
            assert torch.equal(getattr(pre, name), getattr(again, name))


@pytest.mark.parametrize(
    "box, size, number",
    [([100, 100, 110, 110], (256, 256), 49), ([101, 200, 501, 203], (408, 608), 336)],
)
def test_a_small_object_has_all_anchors_of_its_largest_iou(box, size, number):
    """IoU 100 / 64^2 = 0.0244 with 49 anchors of P3; 192 / 5104 = 0.0376 with 336."""
    anchors = squares(*size)
    owners = assign(anchors, [box])
    assert owners.count(0) == number and None in owners
    assert owners[len(anchors[0]) :].count(0) == 0
    # in the order of the objects, whoever comes later takes all
    assert assign(anchors, [box, box]).count(0) == 0
    assert assign(anchors, [box, box]).count(1) == number


def test_the_later_of_two_small_neighbours_takes_the_shared_anchors():
    """49 anchors each, 7 x 7; 5 x 7 of them hold both."""
    anchors, near = squares(256, 256), ([100, 100, 110, 110], [116, 100, 126, 110])
    owners = assign(anchors, near)
    assert (owners.count(0), owners.count(1)) == (14, 49)
    owners = assign(anchors, near[::-1])
    assert (owners.count(0), owners.count(1)) == (14, 49)


def test_an_objects_own_right_goes_before_a_larger_iou():
    """The only anchor fits the first object perfectly; it is the best of the second as well."""
    anchor = [torch.tensor([[0.0, 0, 32, 32]]), torch.zeros(0, 4)]
    assert assign(anchor, [[0, 0, 32, 32], [10, 10, 20, 20]]) == [1]
    assert assign(anchor, [[10, 10, 20, 20], [0, 0, 32, 32]]) == [1]
    # a second anchor fits the second object better: then each has its own
    anchor = [torch.tensor([[0.0, 0, 32, 32], [8, 8, 24, 24]])]
    assert assign(anchor, [[0, 0, 32, 32], [10, 10, 20, 20]]) == [0, 1]


def test_threshold_is_reached_by_equality():
    """IoU 10 / 100 exactly, and the next below; a perfect anchor takes the object's own right."""
    anchors = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 1, 10], [-0.25, 0, 10, 10]])]
    assert assign(anchors, [[0, 0, 1, 10]]) == [0, 0, None]
    assert assign(anchors, [[0, 0, 1, 10]], threshold=0.11) == [None, 0, None]
    assert assign(anchors, [[0, 0, 1, 10]], threshold=0.09) == [0, 0, 0]


def test_the_largest_iou_wins_and_of_equal_ones_the_first():
    anchors = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [2, 0, 12, 10], [1, 0, 11, 10]])]
    boxes = [[0, 0, 10, 10], [2, 0, 12, 10]]  # IoU of both with the last: 9 / 11
    assert assign(anchors, boxes) == [0, 0, 1, 0]
    assert assign(anchors, boxes[::-1]) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "box", [[50, 50, 50, 50], [50, 50, 90, 50], [50, 50, 50.75, 90], [60, 60, 40, 40]]
)
def test_objects_below_a_pixel_are_passed_over(box):
    anchors = squares(64, 64)
    assert set(assign(anchors, [box])) == {None}
    other = [8, 8, 40, 40]
    assert assign(anchors, [other, box]) == assign(anchors, [other])
    assert 0 in assign(anchors, [[50, 50, 51, 51]])


def test_objects_far_from_all_anchors_have_none():
    """An IoU of 0 is no claim, though it is the largest."""
    assert set(assign(squares(64, 64), [[900, 900, 950, 950]])) == {None}


def test_anchors_in_the_padding_are_nobodys():
    """And do not count for the largest IoU: the best of the others is taken instead."""
    anchors = [torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30]])]
    valid = torch.tensor([[False, True, True]])
    assert assign(anchors, [[0, 0, 6, 6]]) == [0, None, None]
    assert assign(anchors, [[0, 0, 6, 6]], valid=valid) == [None, 0, None]
    assert assign(anchors, [[0, 0, 6, 6]], valid=~torch.ones_like(valid)) == [None] * 3


def test_no_objects_at_all():
    pre = preassign(
        squares(64, 64),
        torch.ones(2, 84, dtype=torch.bool),
        torch.zeros(2, 1, 4),
        torch.zeros(2, 1).long(),
    )
    assert len(pre.image) == 0 and pre.boxes.shape == (0, 4)
    costs = anchor_costs(torch.zeros(0, 3), torch.zeros(0, 4), pre.classes, pre.boxes)
    assert costs.shape == (0,) and select_positives(costs, pre, 9).shape == (0,)


# ---- costs


def test_cost_by_hand():
    """Focal loss 0.0433217 + 2 * 0.00135267 and 1.3 * (1 - 1/2)."""
    logits, predicted = torch.tensor([[0.0, -2, -2]]), torch.tensor([[0.0, 0, 10, 10]])
    box = torch.tensor([[0.0, 0, 10, 20]])
    cost = anchor_costs(logits, predicted, torch.tensor([0]), box)
    assert cost.item() == pytest.approx(0.6960270, abs=1e-6)
    assert anchor_costs(logits, predicted, torch.tensor([0]), predicted).item() == pytest.approx(
        0.0433217 + 2 * 0.00135267, abs=1e-6
    )
    # far away: 1 - GIoU is nearly 2
    box = torch.tensor([[1e6, 1e6, 1e6 + 8, 1e6 + 8]])
    cost = anchor_costs(logits, predicted, torch.tensor([0]), box, box_weight=10.0)
    assert cost.item() == pytest.approx(20.046027, rel=1e-5)


def test_costs_equal_loops_and_have_no_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(60, 4, generator=generator) * 3).requires_grad_()
    corners = torch.rand(2, 60, 2, 2, generator=generator) * 60
    predicted, boxes = torch.cat((corners.amin(2), corners.amax(2)), dim=-1)
    predicted[:5, 2:] = predicted[:5, :2]  # boxes of no size
    predicted.requires_grad_()
    classes = torch.randint(4, (60,), generator=generator)
    costs = anchor_costs(logits, predicted, classes, boxes)
    assert costs.dtype == torch.float32 and not costs.requires_grad
    rows = zip(logits.tolist(), predicted.tolist(), classes.tolist(), boxes.tolist(), strict=True)
    assert costs.tolist() == pytest.approx([slow_cost(*row) for row in rows], rel=1e-4)
    half = anchor_costs(logits.half(), predicted, classes, boxes)
    assert half.dtype == torch.float32


# ---- candidates


def candidates(costs, pre, topk):
    """For each object its candidates, ascending; numbers of pre-assigned anchors."""
    table, present, number = cheapest_of_each_level(torch.tensor(costs), pre, topk)
    assert table.shape == present.shape == number.shape == (pre.num_objects, pre.num_levels * topk)
    for row, there in zip(table, present, strict=True):
        assert there.int().diff().le(0).all()  # the others are behind
        assert row[there].isfinite().all() and row.diff().nan_to_num().ge(0).all()
    found = [n[p].tolist() for n, p in zip(number, present, strict=True)]
    values = torch.tensor(costs)
    assert all(torch.equal(values[i], r[p]) for i, r, p in zip(found, table, present, strict=True))
    return found


def test_candidates_by_hand():
    pre = by_hand([0, 0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 2, 2, 2], num_levels=4)
    costs = [0.5, 0.3, 0.4, 0.9, 0.1, 0.3, 0.2, 0.05]
    assert candidates(costs, pre, 1) == [[6, 1, 3], [7, 4]]
    # the cost of 0.3 twice: in the order of the anchors
    assert candidates(costs, pre, 2) == [[6, 1, 5, 2, 3], [7, 4]]
    assert candidates(costs, pre, 9) == [[6, 1, 5, 2, 0, 3], [7, 4]]


def test_costs_that_are_not_finite_are_no_candidates():
    pre = by_hand([0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 0, 0, 0])
    costs = [math.nan, 0.7, math.inf, 0.9, math.nan, -math.inf, 0.1]
    assert candidates(costs, pre, 2) == [[1, 3], [], [6]]
    assert candidates([math.nan] * 7, pre, 2) == [[], [], []]
    # nor do they take the place of others
    assert candidates([-math.inf, 0.7, 0.8], by_hand([0] * 3, [0] * 3), 2) == [[1, 2]]


@pytest.mark.parametrize("topk", [1, 9, 40])
def test_candidates_and_positives_equal_loops(topk):
    generator = torch.Generator().manual_seed(topk)
    objects = torch.randint(6, (400,), generator=generator)
    objects[objects == 4] = 5  # nobody's
    levels = torch.randint(3, (400,), generator=generator).sort().values
    pre = by_hand(objects.tolist(), levels.tolist())
    costs = 0.3 + torch.rand(400, generator=generator) ** 2 * 3
    costs[::7] = (costs[::7] * 10).round() / 10  # ties
    costs[5::31] = math.nan
    found = candidates(costs.tolist(), pre, topk)
    for m in range(6):
        mine = (objects == m).nonzero()[:, 0].tolist()
        chosen = slow_candidates(costs[mine].tolist(), levels[mine].tolist(), topk)
        assert found[m] == [mine[i] for i in chosen]
        assert len(chosen) == 3 * topk or topk == 40 or m == 4
    for split in ("filtered", "prefix"):
        positive = select_positives(costs, pre, topk, split)
        expected = slow_positives(objects.tolist(), costs.tolist(), levels.tolist(), topk, split)
        assert positive.nonzero()[:, 0].tolist() == sorted(expected) and len(expected) > 5


# ---- positives


def split_of(costs, split="filtered", single="drop", width=None):
    table = torch.full((1, width or len(costs)), math.inf)
    table[0, : len(costs)] = torch.tensor(costs)
    return split_candidates(table, table.isfinite(), split, single)[0].nonzero()[:, 0].tolist()


# ascending costs, positives of "filtered" and "prefix"
SPLITS = {
    "up to the peak": ([0.61, 0.74, 0.80, 0.95, 2.10, 2.25, 2.40, 2.90], [0, 1, 2], [0, 1, 2]),
    "the cheapest lies alone": (
        [0.81, 1.49, 1.49, 1.50, 1.50, 1.51, 1.52, 2.42],
        [1, 2, 3],
        [0, 1, 2, 3],
    ),
    "the cheap Gaussian has both ends": (
        [0.24, 1.46, 1.47, 1.49, 1.50, 1.50, 1.51, 1.52, 1.53, 2.68],
        [0, 9],
        list(range(10)),
    ),
    "no members": ([1.001, 1.003, 1.0031, 1.0032, 1.0033], [], [0, 1, 2, 3, 4]),
    "equal": ([0.9] * 4, [0], [0]),
    "a pair": ([1.0, 2.0], [0], [0]),
    "a tie at the peak": ([4.75, 5.45, 7.91], [0], [0]),
    "a tie up to rounding": ([0.73, 0.78, 2.66, 3.59], [0], [0]),
}


@pytest.mark.parametrize("width", [None, 45])
@pytest.mark.parametrize("name", SPLITS)
def test_worked_splits(name, width):
    costs, filtered, prefix = SPLITS[name]
    assert split_of(costs, width=width) == filtered == slow_split(costs)
    assert split_of(costs, "prefix", width=width) == prefix == slow_split(costs, "prefix")


def test_an_only_candidate_is_dropped_or_kept():
    for split in ("filtered", "prefix"):
        assert split_of([0.7], split, "drop", width=9) == []
        assert split_of([0.7], split, "keep", width=9) == [0]
        assert split_of([], split, "keep", width=9) == []
        assert split_of([0.7, 0.8, 0.9], split, "keep", width=9) == split_of([0.7, 0.8, 0.9], split)
    pre = by_hand([0, 1, 1, 3], [0, 0, 1, 0])
    costs = torch.tensor([0.5, 0.5, 2.0, math.nan])
    assert select_positives(costs, pre, 9).tolist() == [False, True, False, False]
    kept = select_positives(costs, pre, 9, single="keep")
    assert kept.tolist() == [True, True, False, False]


@pytest.mark.parametrize("split", ["filtered", "prefix"])
def test_splits_equal_scikit_learns(split):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 46, (60,), generator=generator)
    costs = 0.4 + torch.rand(60, 45, generator=generator) ** 3 * 3
    costs = costs.where(torch.arange(45) < sizes[:, None], math.inf).sort(dim=1).values
    found = split_candidates(costs, costs.isfinite(), split)
    for row, positive, n in zip(costs.tolist(), found, sizes.tolist(), strict=True):
        assert positive.nonzero()[:, 0].tolist() == slow_split(row[:n], split)
