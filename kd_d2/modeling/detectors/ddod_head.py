"""The head of DDOD: that of ATSS, where each tower first looks where it likes to.

Shapes: N images, C channels, H x W cells of a level.
"""

from torch import Tensor, nn

from kd_d2.modeling.backbones.deform_conv import DeformConv
from kd_d2.modeling.detectors.atss_head import ATSSHead


class DDODHead(ATSSHead):
    """ATSS's head with deformable convolutions in block 0 of both towers (arXiv 2107.02963).

    The two tasks so see different places of the same features. Arguments, outputs and parameter
    names are those of :class:`ATSSHead`; besides ``cls_subnet.0.weight`` there is
    ``cls_subnet.0.conv_offset``, and likewise in ``bbox_subnet``.
    """

    arch = "DDOD"

    def __init__(self, *args, **kwargs):
        """
        Raises:
            ValueError: no convolutions, levels of different width, or a width that the norm cannot
                divide.
        """
        super().__init__(*args, **kwargs)
        for tower in (self.cls_subnet, self.bbox_subnet):
            if not len(tower):
                raise ValueError(
                    "MODEL.DDOD.NUM_CONVS is 0: it must be at least 1, the deformable convolution."
                )
            tower[0] = SelfDeformedConv(tower[0].in_channels, bias=tower[0].bias is not None)


class SelfDeformedConv(DeformConv):
    """A 3x3 deformable convolution with the convolution that predicts its offsets.

    Begins as an ordinary convolution, with zero offsets and the weights of a detector's head.
    """

    def __init__(self, channels: int, bias: bool):
        super().__init__(channels, channels, kernel_size=3, padding=1, bias=bias)
        self.conv_offset = nn.Conv2d(channels, 2 * 9, kernel_size=3, padding=1)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return super().forward(x, self.conv_offset(x))
