"""CWD: where each channel of the teacher looks (arXiv 2011.13256)."""

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.adapters import FeatureImitation


def cwd_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's channels from the teacher's, as distributions over the cells.

    t^2 / (N C) sum over n, c of KL(softmax(teacher[n, c] / t) || softmax(student[n, c] / t)), with
    softmax and divergence over the H W cells (section 3.2). The paper writes it for one image.

    Args:
        student, teacher: (N, C, H, W), any floating dtype.
        temperature: t; the higher, the more the weak cells count.

    Returns:
        scalar, float32.

    >>> teacher = torch.tensor([3.0, 1.0]).log().view(1, 1, 1, 2)  # three quarters and one
    >>> cwd_loss(torch.zeros(1, 1, 1, 2), teacher)
    tensor(0.1308)
    """
    log_q = torch.log_softmax(student.float().flatten(2) / temperature, -1)
    log_p = torch.log_softmax(teacher.float().flatten(2) / temperature, -1)
    divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * divergence / student.shape[:2].numel()


@DISTILL_HEAD_REGISTRY.register()
class CWD(FeatureImitation):
    """Channel by channel, the student is to be strong in the cells in which the teacher is.

    A channel's level does not matter, its magnitude does.
    """

    @configurable
    def __init__(self, *, weight: float = 10.0, temperature: float = 1.0, **features):
        """
        Args:
            weight: factor of the sum over levels.
            temperature: see :func:`cwd_loss`.
            features: arguments of :class:`FeatureImitation`.
        """
        super().__init__(**features)
        self.weight = weight
        self.temperature = temperature

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_cwd": scalar}``."""
        pairs = self.feature_pairs(student, teacher)
        loss = sum(cwd_loss(x, y, self.temperature) for x, y in pairs)
        return {"loss_cwd": self.weight * loss}
