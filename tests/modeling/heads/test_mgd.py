"""MGD: which cells are hidden, and the error of what is rebuilt."""

import pytest
import torch
from head_cases import features, shapes, view
from torch import nn

from kd_d2.modeling.heads.mgd import MGD, hide_cells, mgd_loss


def test_a_cell_is_hidden_in_all_channels_or_in_none():
    x = torch.rand(2, 3, 40, 50) + 1
    hidden = hide_cells(x, 0.65) == 0
    assert (hidden == hidden[:, :1]).all()
    assert hidden[:, 0].float().mean().item() == pytest.approx(0.65, abs=0.03)
    assert not torch.equal(hidden[0], hidden[1])


def test_what_is_not_hidden_stays():
    x = torch.randn(2, 3, 8, 8)
    some = hide_cells(x, 0.5)
    assert torch.equal(some, x.where(some != 0, 0.0))
    assert torch.equal(hide_cells(x, 0.0), x) and not hide_cells(x, 1.0).any()


def test_each_call_hides_others_and_a_seed_repeats_them():
    x = torch.ones(1, 1, 8, 8)
    torch.manual_seed(3)
    first, second = hide_cells(x, 0.5), hide_cells(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(hide_cells(x, 0.5), first) and not torch.equal(first, second)


def test_by_hand():
    # rebuilt 2, 4 | 0, 6; wanted 1, 4 | 2, 3: (1 + 0 + 4 + 9) / 2 images
    student = torch.tensor([1.0, 2.0, 0.0, 3.0]).view(2, 1, 1, 2)
    teacher = torch.tensor([1.0, 4.0, 2.0, 3.0]).view(2, 1, 1, 2)
    assert mgd_loss(student, teacher, lambda x: 2 * x, share=0.0).item() == 7
    # all hidden: 1 + 16 + 4 + 9
    assert mgd_loss(student, teacher, lambda x: 2 * x, share=1.0).item() == 15


def test_hidden_cells_pass_no_gradient():
    head = MGD(student_shapes=shapes(), teacher_shapes=shapes(), mask_share=0.5)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    mgd_loss(x, torch.randn(1, 4, 8, 8), head.generators[0], 0.5).backward()
    share = (x.grad == 0).all(1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.2)


def test_head_sums_levels_and_weighs():
    head = MGD(student_shapes=shapes(), teacher_shapes=shapes(), weight=0.5, mask_share=1.0)
    x, y = features(shapes()), features(shapes(), seed=1)
    expected = 0.0
    for generator, wanted in zip(head.generators, y.values(), strict=True):
        expected += (generator(torch.zeros_like(wanted)) - wanted).square().sum() / 2
    torch.testing.assert_close(head(view(x), view(y), None)["loss_mgd"], 0.5 * expected)


def test_every_level_has_a_generator_of_the_teachers_width():
    head = MGD(student_shapes=shapes(4), teacher_shapes=shapes(6), adapter=True)
    convolutions = [m for g in head.generators for m in g if isinstance(m, nn.Conv2d)]
    assert [c.weight.shape for c in convolutions] == [(6, 6, 3, 3)] * 4
