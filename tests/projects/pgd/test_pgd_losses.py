"""PGD's losses against hand-computed values and a version with loops."""

import pgd_reference as reference
import pytest
import torch

from kd_d2.projects.pgd import cls_loss, reg_loss

S = torch.tensor([[[1, -2], [0.5, 0]], [[0, 1], [-1, 2]]]).view(2, 2, 1, 2)
T = torch.tensor([[[0, -1], [1, 0.5]], [[2.0, 1], [0, -1]]]).view(2, 2, 1, 2)
M = torch.tensor([[1, 0], [0, 0.5]]).view(2, 1, 2)
N = torch.tensor([[0.0, 1], [1, 0]]).view(2, 1, 2)
CLS = {"alpha": 0.08, "beta": 0.04, "delta": 0.0008, "temperature": 0.8}
REG = {"gamma": 0.128, "delta": 0.0008, "temperature": 0.8}


@pytest.mark.parametrize(
    "share_masks,fore,back,attention,total",
    [
        (True, 0.5441044, 0.3791118, 0.0017878, 0.9250040),
        (False, 0.2081912, 0.1850162, 0.0017878, 0.3949952),
    ],
)
def test_classification_by_hand(share_masks, fore, back, attention, total):
    def loss(**weights):
        zero = {"alpha": 0.0, "beta": 0.0, "delta": 0.0}
        return cls_loss(S, T, M, N, share_masks=share_masks, temperature=0.8, **{**zero, **weights})

    assert loss(alpha=0.08).item() == pytest.approx(fore, abs=1e-5)
    assert loss(beta=0.04).item() == pytest.approx(back, abs=1e-5)
    assert loss(delta=0.0008).item() == pytest.approx(attention, abs=1e-6)
    assert loss(alpha=0.08, beta=0.04, delta=0.0008).item() == pytest.approx(total, abs=1e-5)


def test_regression_by_hand():
    assert reg_loss(S, T, M, **REG).item() == pytest.approx(0.1718191, abs=1e-5)
    assert reg_loss(S, T, M, **{**REG, "delta": 0}).item() == pytest.approx(0.1706896, abs=1e-5)


def random_features(seed, shape=(3, 4, 3, 5)):
    g = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=g) * 2
    fore = torch.rand(shape[0], *shape[2:], generator=g)
    fore = fore.where(fore > 0.6, 0.0)
    back = (torch.rand(shape[0], *shape[2:], generator=g) > 0.5).float()
    fore[1] = 0  # an image without objects
    return student.double(), teacher.double(), fore, back


@pytest.mark.parametrize("share_masks", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_loops(seed, share_masks):
    student, teacher, fore, back = random_features(seed)
    lists = [x.flatten(2).tolist() for x in (student, teacher)]
    masks = [x.flatten(1).tolist() for x in (fore, back)]
    expected = reference.cls_loss(*lists, *masks, share_masks=share_masks, **CLS)
    ours = cls_loss(student, teacher, fore, back, share_masks=share_masks, **CLS)
    assert ours.item() == pytest.approx(expected, rel=1e-5)
    expected = reference.reg_loss(*lists, masks[0], **REG)
    assert reg_loss(student, teacher, fore, **REG).item() == pytest.approx(expected, rel=1e-5)


def test_level_weight_spares_the_attention():
    student, teacher, fore, back = random_features(0)
    without = cls_loss(student, teacher, fore, back, **{**CLS, "delta": 0})
    once, twice = (
        cls_loss(student, teacher, fore, back, level_weight=w, **CLS) for w in (1.0, 2.0)
    )
    torch.testing.assert_close(twice - once, without)


def test_looking_at_fewer_cells_gives_the_same_loss_and_gradient():
    student, teacher, fore, _ = random_features(1)
    most = int((fore != 0).flatten(1).sum(1).max())
    results = []
    for limit in (None, most, 10_000):
        x = student.clone().requires_grad_()
        loss = reg_loss(x, teacher, fore, max_positives=limit, **REG)
        loss.backward()
        results.append((loss.detach(), x.grad))
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


def test_no_foreground_gives_zero_and_a_gradient_of_zeros():
    x = S.clone().requires_grad_()
    loss = reg_loss(x, T, torch.zeros_like(M), max_positives=30, **REG)
    loss.backward()
    assert loss == 0 and torch.equal(x.grad, torch.zeros_like(x))


def test_equal_features_cost_nothing():
    fore, back = torch.ones_like(M), torch.ones_like(N)
    assert cls_loss(S, S.clone(), fore, back, **CLS) == 0
    assert reg_loss(S, S.clone(), fore, **REG) == 0


def test_a_batch_twice_costs_the_same():
    student, teacher, fore, back = random_features(2)
    twice = [torch.cat((x, x)) for x in (student, teacher, fore, back)]
    torch.testing.assert_close(
        cls_loss(*twice, **CLS), cls_loss(student, teacher, fore, back, **CLS)
    )
    torch.testing.assert_close(reg_loss(*twice[:3], **REG), reg_loss(student, teacher, fore, **REG))


def test_the_teacher_gets_no_gradient_and_the_student_one_through_its_attention():
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    only_attention = {**CLS, "alpha": 0.0, "beta": 0.0}
    cls_loss(student, teacher, M, N, **only_attention).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    student.grad = None
    reg_loss(student, teacher, M, **{**REG, "gamma": 0.0}).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    student, teacher = (x.to(dtype) * 200 for x in (S, T))  # squares beyond float16's range
    ours = cls_loss(student, teacher, M, N, **CLS)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, cls_loss(student.float(), teacher.float(), M, N, **CLS))
    assert reg_loss(student, teacher, M, **REG).isfinite()
