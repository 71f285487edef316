"""FGD against loops over cells and objects written from the paper."""

import math

import pytest
import torch
from head_cases import features, image, objects, shapes, view

from kd_d2.modeling.heads.adapters import squared_error
from kd_d2.modeling.heads.fgd import (
    FGD,
    GcBlock,
    attention,
    cells_of_boxes,
    focal_loss,
    foreground_and_background,
)


def slow_weights(boxes, stride, size):
    """Of one image."""
    h, w = size
    foreground = [[0.0] * w for _ in range(h)]
    for x1, y1, x2, y2 in boxes:
        cells = [
            (i, j)
            for i in range(h)
            for j in range(w)
            if x1 < (j + 1) * stride and x2 > j * stride
            if y1 < (i + 1) * stride and y2 > i * stride
        ]
        for i, j in cells:
            foreground[i][j] = max(foreground[i][j], 1 / len(cells))
    nobody = sum(v == 0 for row in foreground for v in row)
    return foreground, [[float(v == 0) / max(nobody, 1) for v in row] for row in foreground]


def slow_attention(x, t):
    """Of one image (C, H, W): nested lists (H, W), (C,)."""
    c, h, w = x.shape
    spatial = [math.exp(x[:, i, j].abs().mean().item() / t) for i in range(h) for j in range(w)]
    channel = [math.exp(x[k].abs().mean().item() / t) for k in range(c)]
    return [[h * w * v / sum(spatial) for v in spatial], [c * v / sum(channel) for v in channel]]


def slow_focal_loss(student, teacher, weights, gamma, t):
    total = 0.0
    n, c, h, w = student.shape
    for x, y, cell_weights in zip(student, teacher, weights, strict=True):
        own, wanted = slow_attention(x, t), slow_attention(y, t)
        for k in range(c):
            for i in range(h):
                for j in range(w):
                    error = (y[k, i, j] - x[k, i, j]).item() ** 2
                    error *= wanted[0][i * w + j] * wanted[1][k]
                    total += cell_weights[i, j].item() * error
        for a, b in zip(own[0] + own[1], wanted[0] + wanted[1], strict=True):
            total += gamma * abs(a - b)
    return total / n


def test_a_box_has_the_cells_that_it_overlaps():
    boxes = torch.tensor([[[8.0, 8, 16, 16], [7.9, 8, 16.1, 9], [9, 9, 10, 10], [0, 0, 0, 0]]])
    rows, columns = cells_of_boxes(boxes, 8, (3, 4))
    assert columns[0].int().tolist() == [[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert rows[0].int().tolist() == [[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_small_objects_win_where_objects_overlap():
    # 2x2 cells of 1/4, one of them inside a box of 1x1
    boxes = torch.tensor([[[0.0, 0, 16, 16], [8.0, 8, 16, 16]]])
    foreground, background = foreground_and_background(boxes, 8, (2, 3))
    assert foreground.tolist() == [[[0.25, 0.25, 0.0], [0.25, 1.0, 0.0]]]
    assert background.tolist() == [[[0.0, 0.0, 0.5], [0.0, 0.0, 0.5]]]


@pytest.mark.parametrize("stride", [8, 16])
def test_weights_equal_a_loop_over_cells_and_objects(stride):
    corners = torch.rand(3, 5, 2, 2) * 64
    boxes = torch.cat([corners.amin(2), corners.amax(2)], -1)
    boxes[1, 3:] = 0  # padding
    boxes[2] = 0
    size = (64 // stride, 80 // stride)
    sides = foreground_and_background(boxes, stride, size)
    for i, count in enumerate((5, 3, 0)):
        expected = slow_weights(boxes[i, :count].tolist(), stride, size)
        for side, e in zip(sides, expected, strict=True):
            torch.testing.assert_close(side[i], torch.tensor(e))


def test_a_cell_counts_as_foreground_or_as_background():
    foreground, background = foreground_and_background(torch.zeros(1, 1, 4), 8, (2, 2))
    assert not foreground.any() and (background == 0.25).all()
    whole = torch.tensor([[[0.0, 0, 99, 99]]])  # beyond the level: only its own cells are counted
    foreground, background = foreground_and_background(whole, 8, (2, 2))
    assert (foreground == 0.25).all() and not background.any()


def test_attention_by_hand():
    # mean magnitudes of the cells: ln 2, ln 4; of the channels: (ln 2 + ln 4) / 2 both
    x = torch.tensor([[2.0, 4.0], [0.5, 0.25]]).log().view(1, 2, 1, 2)
    spatial, channel = attention(x, 1.0)
    torch.testing.assert_close(spatial, torch.tensor([2 / 3, 4 / 3]).view(1, 1, 1, 2))
    torch.testing.assert_close(channel, torch.ones(1, 2, 1, 1))
    torch.testing.assert_close(attention(x, 0.5)[0].flatten(), torch.tensor([0.4, 1.6]))


def test_focal_loss_equals_loops():
    x, y = torch.randn(2, 2, 3, 4, 5)
    weights = torch.rand(2, 4, 5)
    expected = slow_focal_loss(x, y, weights, gamma=0.3, t=0.5)
    assert focal_loss(x, y, weights, 0.3, 0.5).item() == pytest.approx(expected, rel=1e-4)


def test_the_error_is_weighed_by_the_teachers_attention_alone():
    x, y = torch.randn(2, 1, 3, 4, 5)
    weights = torch.rand(1, 4, 5)
    x.requires_grad_()
    focal_loss(x, y, weights, 0.0).backward()
    spatial, channel = attention(y, 0.5)
    torch.testing.assert_close(x.grad, 2 * weights[:, None] * spatial * channel * (x.detach() - y))


def test_the_students_attention_learns():
    x = torch.randn(1, 3, 4, 5, requires_grad=True)
    focal_loss(x, torch.randn(1, 3, 4, 5), torch.zeros(1, 4, 5), 1.0).backward()
    assert x.grad.abs().sum() > 0


def test_context_block_begins_as_the_identity():
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(GcBlock(6)(x), x)


def test_context_block_equals_a_loop_over_images():
    block = GcBlock(6)
    torch.nn.init.normal_(block.transform[-1].weight)
    x = torch.randn(2, 6, 3, 4)
    for one, out in zip(x, block(x), strict=True):
        cells = one.flatten(1)  # (6, 12)
        logits = block.mask.weight.flatten() @ cells + block.mask.bias
        context = sum(a * v for a, v in zip(logits.softmax(0), cells.T, strict=True))
        torch.testing.assert_close(out, one + block.transform(context)[:, None, None])


def test_context_block_is_computed_in_float32():
    block = GcBlock(6)
    torch.nn.init.normal_(block.transform[-1].weight)
    x = torch.randn(2, 6, 3, 4).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    assert torch.equal(out, block(x.float()))


def test_head_is_the_papers_sum():
    head = FGD(
        student_shapes=shapes(),
        teacher_shapes=shapes(),
        foreground_weight=3.0,
        background_weight=0.5,
        attention_weight=0.25,
        global_weight=0.125,
        temperature=0.8,
    )
    for block in (*head.student_relations, *head.teacher_relations):
        torch.nn.init.normal_(block.transform[-1].weight)
    x, y = features(shapes()), features(shapes(), seed=1)
    focal = relations = 0.0
    for i, (name, stride) in enumerate((("p0", 8), ("p1", 16))):
        a, b = x[name], y[name]
        sides = [slow_weights(gt.gt_boxes.tensor.tolist(), stride, a.shape[2:]) for gt in objects()]
        foreground, background = (torch.tensor(side) for side in zip(*sides, strict=True))
        focal += slow_focal_loss(a, b, 3 * foreground + 0.5 * background, 0.25, 0.8)
        blocks = head.student_relations[i], head.teacher_relations[i]
        relations += squared_error(blocks[0](a), blocks[1](b))
    losses = head(view(x), view(y), objects())
    assert losses["loss_fgd_focal"].item() == pytest.approx(focal, rel=1e-4)
    torch.testing.assert_close(losses["loss_fgd_global"], 0.125 * relations)


def test_an_image_without_objects_is_background():
    kwargs = {"student_shapes": shapes(), "teacher_shapes": shapes(), "attention_weight": 0.0}
    x, y = features(shapes()), features(shapes(), seed=1)
    only = FGD(**kwargs, background_weight=0.0)
    assert only(view(x), view(y), [image(), image()])["loss_fgd_focal"] == 0
    both = FGD(**kwargs)
    assert both(view(x), view(y), [image(), image()])["loss_fgd_focal"] > 0
