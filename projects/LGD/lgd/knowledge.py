"""Intra-object knowledge mapper: from objects back to feature maps (paper, section 3.2.3).

Symbols: B images, N object rows an image, C channels, a level of h x w cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def paint(embeddings: Tensor, masks: Tensor) -> Tensor:
    """Writes each object's embedding into its cells; overlapping objects are summed.

    Args:
        embeddings: (B, N, C).
        masks: (B, N, h, w) of 0 and 1.

    Returns:
        (B, C, h, w), zero in the cells of no object.

    >>> masks = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]]])
    >>> paint(torch.tensor([[[1.0], [2.0]]]), masks).tolist()
    [[[[1.0, 3.0, 0.0]]]]
    """
    painted = torch.bmm(embeddings.transpose(1, 2), masks.to(embeddings.dtype).flatten(2))
    return painted.unflatten(2, masks.shape[2:])


def paint_and_convolve(
    conv: nn.Conv2d, embeddings: Tensor, masks: Tensor, context: Tensor | None = None
) -> Tensor:
    """``conv(paint(embeddings, masks))``, plus one vector an image on all cells.

    A painted map is a sum of N vectors times 0/1 maps, so its convolution is the convolution of
    those maps by the vectors times the kernel. For few objects that is far less work, and keeps
    less for the backward pass, than convolving C channels; the result is the same.

    Args:
        conv: 3x3, padding 1, C to C channels.
        embeddings: (B, N, C).
        masks: (B, N, h, w) of 0 and 1.
        context: (B, C), or None.

    Returns:
        (B, C, h, w).
    """
    rows, channels = embeddings.shape[1:]
    if 4 * rows > channels:
        out = conv(paint(embeddings, masks))
        return out if context is None else out + context[..., None, None].to(out.dtype)
    # (B, N, C) x (C_out, C * 9) -> (B, C_out, N * 9), the layout of unfold.
    kernel = conv.weight.permute(1, 0, 2, 3).flatten(1)
    kernel = (embeddings @ kernel).unflatten(2, (channels, -1)).transpose(1, 2).flatten(2)
    patches = F.unfold(masks.to(kernel.dtype), conv.kernel_size, padding=conv.padding)
    bias = conv.bias if context is None else conv.bias + context
    out = torch.baddbmm(bias.expand(len(masks), -1)[..., None], kernel, patches)
    return out.unflatten(2, masks.shape[2:])


def refinement(channels: int) -> nn.Sequential:
    """conv-GN-ReLU, conv-GN-ReLU, conv-GN: no ReLU at the end, no affine parameters."""
    layers = []
    for _ in range(3):
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels, affine=False),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers[:-1])
