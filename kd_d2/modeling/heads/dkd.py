"""DKD: decoupled knowledge of the right class and of the others (arXiv 2203.08679).

Shapes: K classes.
"""

import torch
from detectron2.config import configurable
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.one_per_cell import mean_over_gpus
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY
from kd_d2.modeling.heads.locations import LogitImitation, assigned_classes


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    classes: Tensor,
    target_weight: float = 1.0,
    others_weight: float = 0.25,
    temperature: float = 1.0,
) -> Tensor:
    """t^2 (alpha KL(b_teacher || b_student) + beta KL(o_teacher || o_student)) (section 3).

    b = (p_y, 1 - p_y) is how sure each side is of the right class y, p being the softmax of its
    logits / t; o is the softmax over all other classes, without y. Ordinary distillation is alpha =
    1 and beta = 1 - p_y of the teacher: the surer that is, the less is heard of what it knows of
    the other classes.

    Args:
        student, teacher: logits (..., K), any floating dtype, K > 1.
        classes: (...), y.
        target_weight, others_weight: alpha and beta.
        temperature: t.

    Returns:
        (...), float32; 0 if student and teacher agree.

    >>> student, teacher = torch.zeros(3), torch.tensor([6.0, 3.0, 1.0]).log()
    >>> right = torch.tensor(0)
    >>> dkd_loss(student, teacher, right, others_weight=0.0)  # (3/5, 2/5) and (1/3, 2/3)
    tensor(0.1483)
    >>> dkd_loss(student, teacher, right, target_weight=0.0, others_weight=1.0)  # (3/4, 1/4)
    tensor(0.1308)
    """
    right = classes[..., None] == torch.arange(student.shape[-1], device=classes.device)

    def decoupled(logits: Tensor) -> tuple[Tensor, Tensor]:
        """log b (..., 2), and log o (..., K), meaningless at y."""
        logits = logits.float() / temperature
        others = logits.masked_fill(right, -torch.inf).logsumexp(-1, keepdim=True)
        pair = torch.cat((logits.gather(-1, classes[..., None]), others), -1)
        return pair.log_softmax(-1), logits - others

    (own_b, own_o), (b, o) = decoupled(student), decoupled(teacher)
    target = F.kl_div(own_b, b, reduction="none", log_target=True).sum(-1)
    others = (o.exp().masked_fill(right, 0.0) * (o - own_o)).sum(-1)
    return temperature**2 * (target_weight * target + others_weight * others)


@DISTILL_HEAD_REGISTRY.register()
class DKD(LogitImitation):
    """Where a location learns an object, its classes are compared as the teacher sees them.

    The paper's detectors are R-CNNs, whose every proposal is compared, background being a class.
    Dense detectors have no such class, so these are their positives alone, and the softmax is over
    logits that were trained with a sigmoid each.
    """

    @configurable
    def __init__(
        self,
        *,
        target_weight: float = 1.0,
        others_weight: float = 0.25,
        temperature: float = 1.0,
        **shapes,
    ):
        """
        Args:
            target_weight, others_weight, temperature: see :func:`dkd_loss`, of the mean over the
                positives.
            shapes: arguments of :class:`PredictionImitation`.
        """
        super().__init__(**shapes)
        self.target_weight = target_weight
        self.others_weight = others_weight
        self.temperature = temperature

    def connect(self, student, teacher) -> None:
        """
        Raises:
            ValueError: there is one class, or the student's detector does not say which a location
                is to learn; or see :meth:`LogitImitation.connect`.
        """
        super().connect(student, teacher)
        if not student.assigns or student.num_classes == 1:
            why = "there is only one" if student.assigns else "the student's detector assigns none"
            raise ValueError(
                f"DKD compares the class that a location learns with the others, and {why}: take "
                "SoftLabel instead of it in MODEL.KD.HEADS."
            )

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_dkd": scalar}``."""
        x, y, valid = self.logit_pair(student.decoded, teacher.decoded)
        classes, positive = assigned_classes(student)
        loss = dkd_loss(x, y, classes, self.target_weight, self.others_weight, self.temperature)
        loss = loss.where(positive & valid, 0.0).sum()
        return {"loss_dkd": loss / mean_over_gpus(positive.sum())}
