"""The heads of PAA: names, initial values, COP and IOP, and logits of probabilities."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from fcos_cases import K
from paa_cases import sigmoid
from torch import nn
from torch.nn import functional as F

from kd_d2.modeling.detectors.atss_head import ATSSHead
from kd_d2.modeling.detectors.paa_head import (
    PAAHead,
    conditional_objectness,
    implicit_objectness,
    logit_of,
)

# objectness -> the outputs that it adds
EXTRA = {"none": {}, "cop": {"coefficients": 9}, "iop": {"objectness": 1, "background": 1}}
kinds = pytest.mark.parametrize("kind", EXTRA)
with_objectness = pytest.mark.parametrize("kind", ["cop", "iop"])
branches = pytest.mark.parametrize("iou_branch", [True, False])


def head_of(channels=64, levels=5, head=PAAHead, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return head(input_shape=shapes, num_classes=K, **kwargs)


@kinds
@branches
def test_parameter_names_and_shapes(kind, iou_branch):
    """Those of ATSS, whose third output has another name, and what the objectness adds."""
    head = head_of(objectness=kind, iou_branch=iou_branch)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    expected = {
        name.replace("quality", "iou"): tuple(p.shape)
        for name, p in head_of(head=ATSSHead).named_parameters()
        if iou_branch or "quality" not in name
    }
    for name, channels in EXTRA[kind].items():
        expected[f"{name}.weight"], expected[f"{name}.bias"] = (channels, 64, 3, 3), (channels,)
    assert shapes == expected
    assert (head.iou is None) != iou_branch


@kinds
@branches
def test_initial_values(kind, iou_branch):
    torch.manual_seed(0)
    head = head_of(objectness=kind, iou_branch=iou_branch)
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2), name
    assert head.cls_score.bias.tolist() == pytest.approx([-4.59512] * K, abs=1e-5)
    biases = {name: p for name, p in head.named_parameters() if name.endswith(".bias")}
    if kind == "iop":
        background = biases.pop("background.bias")
        assert background.tolist() == pytest.approx([-math.log(9999)])
    assert not any(
        p.any() for n, p in biases.items() if "subnet" not in n and n != "cls_score.bias"
    )
    assert all(s.scale.item() == 1 for s in head.scales)


def test_unknown_objectness():
    with pytest.raises(ValueError) as error:
        head_of(objectness="COP")
    assert str(error.value) == "MODEL.PAA.OBJECTNESS is 'COP'; it must be one of none, cop, iop."


@kinds
@branches
def test_outputs(kind, iou_branch):
    """Levels keep their order; what is not class logits is ATSS's."""
    head = head_of(levels=2, num_convs=1, objectness=kind, iou_branch=iou_branch)
    features = [torch.rand(2, 64, 6, 5), torch.rand(2, 64, 3, 3)]
    outputs = head(features)
    channels = [K, 4] + [1] * iou_branch
    assert [[tuple(x.shape) for x in level] for level in outputs] == [
        [(2, c, 6, 5), (2, c, 3, 3)] for c in channels
    ]
    plain = head_of(levels=2, num_convs=1, head=ATSSHead)
    own = {n.replace("iou", "quality"): v for n, v in head.state_dict().items()}
    plain.load_state_dict({n: own.get(n, v) for n, v in plain.state_dict().items()})
    expected = plain(features)
    for i in range(len(outputs)):
        same = all(torch.equal(a, b) for a, b in zip(outputs[i], expected[i], strict=True))
        assert same == (i > 0 or kind == "none")


@with_objectness
def test_class_scores_are_those_of_the_formulas(kind):
    """From the outputs of the convolutions; the classes' is on their tower, the others' are not."""
    head = head_of(levels=1, num_convs=1, objectness=kind)
    for conv in (head.cls_score, *(head.get_submodule(name) for name in EXTRA[kind])):
        nn.init.normal_(conv.weight, std=0.2)
    seen = {}
    for name in ("cls_score", *EXTRA[kind]):
        head.get_submodule(name).register_forward_hook(
            lambda m, x, y, name=name: seen.update({name: (x[0], y)})
        )
    feature = torch.rand(1, 64, 4, 5)
    probabilities = head([feature])[0][0].sigmoid()
    formula = {"cop": conditional_objectness, "iop": implicit_objectness}[kind]
    expected = formula(*(y for _, y in seen.values()))
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(seen.pop("cls_score")[0], head.cls_subnet(feature))
    for x, _ in seen.values():
        torch.testing.assert_close(x, head.bbox_subnet(feature))


@with_objectness
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_class_logits_are_float32_under_autocast(kind, dtype):
    head = head_of(levels=1, num_convs=1, objectness=kind)
    feature = torch.rand(1, 64, 4, 4)
    plain = head([feature])
    with torch.autocast("cpu", dtype=dtype):
        lean = head([feature])
    assert lean[0][0].dtype == lean[1][0].dtype == torch.float32 != lean[2][0].dtype
    torch.testing.assert_close(lean[0][0], plain[0][0], rtol=0.02, atol=0.02)


@with_objectness
def test_everything_learns(kind):
    head = head_of(levels=2, num_convs=1, objectness=kind)
    outputs = head([torch.rand(1, 64, 4, 4), torch.rand(1, 64, 2, 2)])
    sum(x.square().sum() for level in outputs for x in level).backward()
    for name, p in head.named_parameters():
        assert p.grad is not None and p.grad.any() and p.grad.isfinite().all(), name


# ---- conditional objectness


def test_conditional_objectness_by_hand():
    """Cells outside of the level have the probability 1/2."""
    found = conditional_objectness(torch.full((1, 2, 4, 5), -4.0), torch.zeros(1, 9, 4, 5))[0, 1]
    assert found[1:3, 1:4].flatten().tolist() == pytest.approx([0.00899310] * 6, rel=1e-5)
    assert found[0, 0].item() == pytest.approx(0.14288583, rel=1e-6)
    edge = (6 * sigmoid(-4) + 3 * 0.5) * 0.5 / 9
    assert [found[0, 2].item(), found[1, 4].item()] == pytest.approx([edge] * 2)


def slow_conditional(logits, coefficients):
    k, height, width = logits.shape
    out = torch.zeros(k, height, width)
    for c in range(k):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for j in range(9):
                    i, m = y + j // 3 - 1, x + j % 3 - 1
                    inside = 0 <= i < height and 0 <= m < width
                    z = logits[c, i, m].item() if inside else 0.0
                    total += sigmoid(z) * sigmoid(coefficients[j, y, x].item())
                out[c, y, x] = total / 9
    return out


def test_conditional_objectness_equals_loops():
    generator = torch.Generator().manual_seed(0)
    logits, coefficients = (torch.randn(2, c, 4, 6, generator=generator) * 3 for c in (3, 9))
    found = conditional_objectness(logits, coefficients)
    for n in range(2):
        torch.testing.assert_close(found[n], slow_conditional(logits[n], coefficients[n]))
    one = conditional_objectness(logits[:, :, :1, :1], coefficients[:, :, :1, :1])
    torch.testing.assert_close(one[0], slow_conditional(logits[0, :, :1, :1], coefficients[0]))
    half = logits.bfloat16(), coefficients.bfloat16()
    found, expected = (conditional_objectness(*x) for x in (half, [y.float() for y in half]))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


# ---- implicit objectness


def test_implicit_objectness():
    """max(s(z) - s(b), 0) s(o): one objectness and one background for all classes of a cell."""
    logits = torch.tensor([2.0, 0.5, -3.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    objectness = torch.tensor([1.0, -20.0]).view(1, 1, 1, 2)
    background = torch.tensor([-1.0, 0.5]).view(1, 1, 1, 2)
    found = implicit_objectness(logits, objectness, background)
    first = [(sigmoid(z) - sigmoid(-1)) * sigmoid(1) for z in (2.0, 0.5)] + [0]
    assert found[0, :, 0, 0].tolist() == pytest.approx(first)
    second = [(sigmoid(2) - sigmoid(0.5)) * sigmoid(-20), 0, 0]
    assert found[0, :, 0, 1].tolist() == pytest.approx(second, rel=1e-4)
    half = logits.bfloat16(), objectness.bfloat16(), background.bfloat16()
    found, expected = (implicit_objectness(*x) for x in (half, [y.float() for y in half]))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


# ---- logits of probabilities

PROBABILITIES = [0.0, 1e-38, 1e-20, 1e-13, 1e-6, 0.01, 0.3, 0.5, 0.9, 1 - 2**-12, 1 - 2**-24, 1.0]


def test_logits_and_back():
    p = torch.tensor(PROBABILITIES)
    logits = logit_of(p)
    assert logits[[0, 7, 11]].tolist() == [-100, 0, 100]
    assert logits.isfinite().all() and (logits.diff() > 0).all()
    torch.testing.assert_close(logits.sigmoid(), p, rtol=1e-5, atol=1e-43)


@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_gradients_are_those_of_the_cross_entropy_of_probabilities(target):
    """Both ends included, where a slope without a limit would be infinite."""
    slopes = []
    for through_logits in (True, False):
        # without the one next to 1, which sigmoid cannot tell from 1 in float32
        p = torch.tensor([*PROBABILITIES[:-2], 1.0], requires_grad=True)
        y = torch.full_like(p, target)
        if through_logits:
            loss = F.binary_cross_entropy_with_logits(logit_of(p), y, reduction="sum")
        else:
            loss = F.binary_cross_entropy(p, y, reduction="sum")
        slopes.append(torch.autograd.grad(loss, p)[0])
    assert slopes[0].isfinite().all()
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)
    if target == 1:
        assert slopes[0][0].item() == pytest.approx(-1e12)


def test_gradients_are_those_of_differences():
    p = torch.linspace(0.01, 0.99, 25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(logit_of, p)
