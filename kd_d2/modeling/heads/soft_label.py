"""SoftLabel: the teacher's class probabilities as targets, each class by itself.

Shapes: N images, A locations of all levels together, K classes.
"""

from detectron2.config import configurable
from torch import Tensor

from kd_d2.modeling.detectors.gfl_losses import quality_focal_loss
from kd_d2.modeling.detectors.one_per_cell import mean_over_gpus
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.locations import LogitImitation, count_positives


def soft_label_loss(student: Tensor, teacher: Tensor, beta: float = 1.0) -> Tensor:
    """Binary cross entropy with the teacher's probabilities, where the two differ.

    sum over k of |q_k - p_k|^beta * -(q_k log p_k + (1 - q_k) log(1 - p_k)), p and q being the
    sigmoids of student and teacher. The quality focal loss (GFL, arXiv 2006.04388, eq. 1) with a
    teacher in place of the IoU: it lets the many locations rest on which both see nothing. With
    beta = 1 it is the classification loss of BCKD (arXiv 2308.14286).

    Args:
        student, teacher: logits (..., K), any floating dtype.
        beta: at least 1.

    Returns:
        (...), float32; 0 if student and teacher agree.

    >>> import torch
    >>> student, teacher = torch.zeros(2), torch.tensor([3.0, 1.0]).log()  # 3/4 and 1/2
    >>> soft_label_loss(student, teacher)
    tensor(0.1733)
    """
    return quality_focal_loss(student.float(), teacher.float().sigmoid(), beta).sum(-1)


@DISTILL_HEAD_REGISTRY.register()
class SoftLabel(LogitImitation):
    """The student's class scores are to be the teacher's, at all locations.

    Both sides have the same locations: as many anchors or points in each cell of the same levels.
    """

    @configurable
    def __init__(self, *, weight: float = 1.0, beta: float = 1.0, **shapes):
        """
        Args:
            weight: factor of the sum over locations, divided by the number of positives.
            beta: see :func:`soft_label_loss`.
            shapes: arguments of :class:`LogitImitation`.
        """
        super().__init__(**shapes)
        self.weight = weight
        self.beta = beta

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_soft_label": scalar}``."""
        x, y, valid = self.logit_pair(student.decoded, teacher.decoded)
        loss = soft_label_loss(x, y, self.beta).where(valid, 0.0).sum()
        count = mean_over_gpus(count_positives(student, teacher.decoded))
        return {"loss_soft_label": self.weight * loss / count}
