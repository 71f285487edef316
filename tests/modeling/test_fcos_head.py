"""The outputs of FCOS's head."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from fcos_cases import K
from torch import nn

from kd_d2.modeling.detectors import FCOSHead


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return FCOSHead(input_shape=shapes, num_classes=K, **kwargs)


@pytest.mark.parametrize("norm_reg_targets", [True, False])
def test_box_output(norm_reg_targets):
    head = head_of(levels=2, norm_reg_targets=norm_reg_targets)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    _, distances, _ = head([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 1)])
    if norm_reg_targets:
        assert distances[0][0, :, 0, 0].tolist() == [4, 0, 16, 0]
        assert distances[1][0, :, 0, 0].tolist() == [24, 0, 96, 0]
    else:
        expected = (3 * head.bbox_pred.bias).exp()
        torch.testing.assert_close(distances[1][0, :, 0, 0], expected)


@pytest.mark.parametrize("on_reg", [True, False])
def test_centerness_tower(on_reg):
    head = head_of(levels=1, num_convs=1, centerness_on_reg=on_reg)
    _, _, centerness = head([torch.rand(1, 64, 4, 4)])
    centerness[0].sum().backward()
    assert (head.bbox_subnet[0].weight.grad is not None) == on_reg
    assert (head.cls_subnet[0].weight.grad is not None) == (not on_reg)
