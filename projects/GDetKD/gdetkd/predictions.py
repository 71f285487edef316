"""Imitation of what a box head predicts, for two R-CNNs (G-DetKD, arXiv 2108.07482).

Shapes: R regions, K classes, background last.
"""

from torch import Tensor
from torch.nn import functional as F


def class_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` of each region.

    Args:
        student, teacher: logits (R, K + 1), any floating dtype; the teacher's side is a constant.

    Returns:
        (R,), float32.

    >>> import torch
    >>> teacher, student = torch.tensor([[2.0, 0, 1]]), torch.tensor([[1.0, 0, 1]])
    >>> [round(class_loss(student, teacher, t).item(), 5) for t in (1.0, 2.0)]
    [0.11963, 0.12396]
    """
    log_q, log_p = ((x.float() / temperature).log_softmax(1) for x in (student, teacher.detach()))
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * temperature**2


def class_aware_box_loss(student: Tensor, teacher: Tensor, probabilities: Tensor) -> Tensor:
    """``sum over coordinates of |sum over c of p_c (teacher_c - student_c)|`` of each region.

    Boxes of the classes that the teacher sees count. Differences of opposite sign cancel, as the
    absolute value is outside of the sum over the classes.

    Args:
        student, teacher: deltas (R, K, 4), any floating dtype; the teacher's side is a constant.
        probabilities: (R, K) of the teacher, without the background's, so that they sum to less
            than 1 and regions of the background count little.

    Returns:
        (R,), float32.

    >>> import torch
    >>> teacher = torch.tensor([[[0.3, 0.1, 0, 0], [0.1, 0, 0.2, 0]]])
    >>> student = torch.tensor([[[0.1, 0.0, 0, 0], [0.5, 0, 0.0, 0]]])
    >>> class_aware_box_loss(student, teacher, torch.tensor([[0.6, 0.3]]))
    tensor([0.1200])
    """
    difference = teacher.detach().float() - student.float()
    return (probabilities.detach().float()[..., None] * difference).sum(1).abs().sum(1)
