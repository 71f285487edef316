"""The embedding that tells which level fits: ``f_embed`` behind ``f_adap``."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_RESOLUTION = 7


class LevelKeys(nn.Module):
    """Two 3x3 convolutions of stride 2 without padding: 7 x 7 cells become one vector."""

    def __init__(self, channels: int, embed_channels: tuple[int, int], final_relu: bool = True):
        """
        Args:
            channels: of the teacher's pooled features.
            embed_channels: of the two layers.
            final_relu: a ReLU behind the second, too.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(channels, embed_channels[0], 3, stride=2)
        self.conv2 = nn.Conv2d(*embed_channels, 3, stride=2)
        self.final_relu = final_relu

    def forward(self, x: Tensor, adapter: nn.Conv2d | None = None) -> Tensor:
        """Keys (R, D) of pooled features (R, C, h, w).

        Args:
            adapter: a 1x1 convolution that ``x`` has still to pass. It is merged into the first
                layer, which is exact, as neither has padding or an activation between them.
        """
        weight, bias = self.conv1.weight, self.conv1.bias
        if adapter is not None:
            weight, bias = merged(adapter, self.conv1)
        x = self.conv2(F.conv2d(x, weight, bias, stride=2).relu())
        return (x.relu() if self.final_relu else x).flatten(1)


def merged(first: nn.Conv2d, second: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what a 1x1 one and another behind it do."""
    weight, mixing = second.weight, first.weight.flatten(1)
    bias = second.bias + torch.einsum("ockl,c->o", weight, first.bias)
    return torch.einsum("ockl,ci->oikl", weight, mixing), bias


def channel_adapter(channels: int, target: int) -> nn.Conv2d:
    """``f_adap``, one for all levels; it begins as the identity where channels agree."""
    adapter = nn.Conv2d(channels, target, 1)
    if channels == target:
        nn.init.dirac_(adapter.weight)
        nn.init.zeros_(adapter.bias)
    return adapter
