"""Deformable convolutions that run everywhere.

Detectron2's need its compiled extension, and the modulated one (DCNv2) never runs on a CPU. These
here are torchvision's, behind the constructors and parameter names of Detectron2's, so that its
blocks, configs (``MODEL.RESNETS.DEFORM_*``) and checkpoints work unchanged.

Both use the same layout: a vertical, then a horizontal offset, and one weight per kernel point.
"""

import math
from contextlib import nullcontext

import detectron2.layers
import torch
from detectron2.layers import deform_conv as stock_layers
from detectron2.modeling.backbone import resnet as stock_resnet
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d


class ModulatedDeformConv(nn.Module):
    """Deformable convolution with modulation, DCNv2 (arXiv 1811.11168), by torchvision."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation=None,
    ):
        """
        Args:
            deformable_groups: groups of input channels that move independently.
            norm, activation: applied to the result, if given.
            others: as in ``torch.nn.Conv2d``.

        Raises:
            ValueError: channels that the groups do not divide.
        """
        super().__init__()
        for name, channels, count in (
            ("in_channels", in_channels, groups),
            ("out_channels", out_channels, groups),
            ("in_channels", in_channels, deformable_groups),
        ):
            if channels % count:
                raise ValueError(f"{name} = {channels} cannot be divided into {count} groups.")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).
            offset: (N, 2 * deformable_groups * kernel points, H', W'), in cells.
            mask: (N, deformable_groups * kernel points, H', W'), the weight of each point.

        Returns:
            (N, out_channels, H', W') in the type of ``x``.

        Raises:
            ValueError: offsets whose channels do not fit ``deformable_groups`` and the kernel.
        """
        points = self.deformable_groups * math.prod(self.kernel_size)
        if offset.shape[1] != 2 * points or (mask is not None and mask.shape[1] != points):
            raise ValueError(
                f"A deformable convolution of {points} points needs {2 * points} channels of "
                f"offsets and {points} of masks, got {offset.shape[1]} and "
                f"{'none' if mask is None else mask.shape[1]}."
            )
        # A position in float16 is too coarse to interpolate at, so the sampling is done in float32.
        dtype = torch.promote_types(x.dtype, torch.float32)
        # (the meta device knows no autocast)
        plain = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
        with plain:
            out = deform_conv2d(
                x.to(dtype),
                offset.to(dtype),
                self.weight.to(dtype),
                None if self.bias is None else self.bias.to(dtype),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=None if mask is None else mask.to(dtype),
            ).to(x.dtype)
        if self.norm is not None:
            out = self.norm(out)
        if self.activation is not None:
            out = self.activation(out)
        return out

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, deformable_groups={self.deformable_groups}, "
            f"bias={self.bias is not None}"
        )


class DeformConv(ModulatedDeformConv):
    """Deformable convolution without modulation and bias, DCNv1 (arXiv 1703.06211)."""

    def __init__(self, *args, bias: bool = False, **kwargs):
        super().__init__(*args, bias=bias, **kwargs)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """As in :class:`ModulatedDeformConv`, every point having weight 1."""
        return super().forward(x, offset, None)


def install_deform_conv() -> None:
    """Let Detectron2 build its deformable blocks from the classes above.

    They replace ``DeformConv`` and ``ModulatedDeformConv`` where Detectron2 defines, re-exports
    and uses them, whether or not its extension is compiled: it computes the same function, but
    on GPUs only. Done once, when this package is imported; models built before keep theirs.
    """
    for module in (stock_layers, detectron2.layers, stock_resnet):
        module.DeformConv = DeformConv
        module.ModulatedDeformConv = ModulatedDeformConv
