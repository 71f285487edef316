"""A convolution with a sparse backward pass is the convolution, and R-CNNs use it unseen."""

import pytest
import torch
from torch import nn

from kd_d2.modeling import build_stages, rcnn_stages
from kd_d2.modeling.sparse_backward import is_plain_conv3x3, sparse_backward_conv
from kd_d2.modeling.views import Stage, ViewRequest


def gradients(function, x, conv, cells, needs_input=True):
    """Output and gradients of a loss that reads the given (image, row, column) cells."""
    x = x.clone().requires_grad_(needs_input)
    conv.zero_grad()
    out = function(x, conv)
    weights = torch.linspace(1, 2, len(cells))
    image, row, column = torch.tensor(cells).t() if cells else torch.empty(3, 0, dtype=torch.long)
    (out[image, :, row, column].square().sum(1) * weights).sum().backward()
    return out.detach(), [x.grad, *(p.grad for p in conv.parameters())]


@pytest.mark.parametrize(
    "cells",
    [
        [(0, 2, 3)],
        [(0, 0, 0), (1, 4, 6), (1, 0, 6)],  # corners
        [(0, 2, 2), (0, 2, 3), (1, 3, 2)],  # overlapping neighbourhoods
        [],
        [(i, r, c) for i in range(2) for r in range(5) for c in range(7)],  # dense
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_input", [True, False])
def test_is_the_convolution(cells, bias, needs_input):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 6, 3, padding=1, bias=bias), torch.randn(2, 4, 5, 7)
    dense, expected = gradients(lambda x, conv: conv(x), x, conv, cells, needs_input)
    sparse, found = gradients(sparse_backward_conv, x, conv, cells, needs_input)
    assert torch.equal(sparse, dense)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_under_autocast():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, found = gradients(sparse_backward_conv, x, conv, [(0, 1, 2), (1, 4, 0)])
        assert out.dtype == torch.bfloat16 and torch.equal(out, conv(x))
    _, expected = gradients(sparse_backward_conv, x, conv, [(0, 1, 2), (1, 4, 0)])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "kwargs", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}]
)
def test_other_convolutions_are_refused(kwargs):
    assert not is_plain_conv3x3(nn.Conv2d(4, 4, 3, padding=1, **kwargs))


def losses_and_gradients(detector, stages, batch, skip):
    stages.may_skip_cells = skip
    detector.zero_grad()
    torch.manual_seed(3)  # the samplers draw
    gt = [x["instances"] for x in batch]
    losses = stages.run(batch, ViewRequest(Stage.LOSSES), gt, only_losses=True).losses
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in detector.named_parameters() if p.requires_grad}


@pytest.fixture
def calls(monkeypatch):
    calls = []

    def counted(x, conv):
        calls.append(x.shape)
        return sparse_backward_conv(x, conv)

    monkeypatch.setattr(rcnn_stages, "sparse_backward_conv", counted)
    return calls


@pytest.mark.parametrize("arch", ["FasterRCNN", "CascadeRCNN"])
@pytest.mark.parametrize("objects", [(3, 2), (2, 0), (0, 0)])
def test_an_rcnn_has_the_same_losses_and_gradients(
    arch, objects, tiny_cfg, build, random_batch, storage, calls
):
    torch.manual_seed(0)
    detector = build(tiny_cfg(arch)).train()
    stages = build_stages(detector)
    batch = random_batch(sizes=((128, 160), (128, 128)), objects=objects)
    expected = losses_and_gradients(detector, stages, batch, skip=False)
    assert not calls
    found = losses_and_gradients(detector, stages, batch, skip=True)
    assert len(calls) == 5  # levels
    for name, loss in expected[0].items():
        assert torch.equal(found[0][name], loss), name
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6)


def test_a_distiller_uses_it_in_both_passes(lgd_cfg, build, random_batch, storage, calls):
    build(lgd_cfg("FasterRCNN")).train()(random_batch())
    assert len(calls) == 10
    cfg = lgd_cfg("FasterRCNN")
    cfg.MODEL.KD.SKIP_UNUSED_CELLS = False
    build(cfg).train()(random_batch())
    assert len(calls) == 10


def test_hooks_and_other_layers_keep_the_module(tiny_cfg, build, random_batch, storage, calls):
    detector = build(tiny_cfg("FasterRCNN")).train()
    seen = []
    detector.proposal_generator.rpn_head.conv.register_forward_hook(lambda *_: seen.append(1))
    losses_and_gradients(detector, build_stages(detector), random_batch(), skip=True)
    assert len(seen) == 5 and not calls
    cfg = tiny_cfg("FasterRCNN")
    cfg.MODEL.RPN.CONV_DIMS = [-1, -1]
    detector = build(cfg).train()
    losses_and_gradients(detector, build_stages(detector), random_batch(), skip=True)
    assert not calls
