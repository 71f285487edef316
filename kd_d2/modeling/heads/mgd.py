"""MGD: the teacher's features are rebuilt from what is left of the student's (arXiv 2205.01529)."""

from collections.abc import Callable

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.adapters import FeatureImitation, squared_error


def hide_cells(x: Tensor, share: float) -> Tensor:
    """Zeroes each cell of each image with probability ``share``, all channels together.

    The authors draw on the host; here the device's own generator does, so that nobody waits.

    Args:
        x: (N, C, H, W).

    >>> hide_cells(torch.ones(1, 1, 1, 3), 1.0).tolist()
    [[[[0.0, 0.0, 0.0]]]]
    """
    kept = torch.rand(len(x), 1, *x.shape[2:], device=x.device) >= share
    return x * kept


def mgd_loss(
    student: Tensor, teacher: Tensor, rebuild: Callable[[Tensor], Tensor], share: float
) -> Tensor:
    """Squared error of the rebuilt features: 1 / N sum of (teacher - rebuild(student * kept))^2.

    The paper (section 3.2) sums over cells and channels of one image; the authors' code, too,
    divides by the number of images.

    Args:
        student, teacher: (N, C, H, W), any floating dtype.
        rebuild: from features to features of the teacher's shape.
        share: of the cells that are hidden from it.

    Returns:
        scalar, float32.

    >>> mgd_loss(torch.ones(2, 1, 1, 2), torch.full((2, 1, 1, 2), 4.0), lambda x: 2 * x, share=0.0)
    tensor(8.)
    """
    return squared_error(rebuild(hide_cells(student, share)), teacher)


@DISTILL_HEAD_REGISTRY.register()
class MGD(FeatureImitation):
    """The student's features need not equal the teacher's: it must be possible to make them of it.

    Every level has a generator of its own, two 3x3 convolutions that see a random part of the
    cells. It is trained together with the student and dropped afterwards.
    """

    @configurable
    def __init__(self, *, weight: float = 2e-5, mask_share: float = 0.65, **features):
        """
        Args:
            weight: factor of the sum over levels.
            mask_share: see :func:`mgd_loss`.
            features: arguments of :class:`FeatureImitation`.
        """
        super().__init__(**features)
        self.weight = weight
        self.mask_share = mask_share
        self.generators = nn.ModuleList(map(_generator, self.channels))

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_mgd": scalar}``."""
        pairs = self.feature_pairs(student, teacher)
        loss = sum(
            mgd_loss(x, y, generator, self.mask_share)
            for (x, y), generator in zip(pairs, self.generators, strict=True)
        )
        return {"loss_mgd": self.weight * loss}


def _generator(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
