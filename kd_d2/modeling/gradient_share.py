"""Who pulls at the student: shares of the losses in the gradient of its features."""

import logging
from collections.abc import Mapping, Sequence

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

logger = logging.getLogger(__name__)

# Gradients of float16 features would vanish without; shares do not depend on it.
_SCALE = 1024.0


def gradient_shares(losses: Mapping[str, Tensor], features: Sequence[Tensor]) -> dict[str, float]:
    """Norm of each loss's gradient in the features, divided by the sum of the norms.

    Each loss is differentiated by itself, down to the features and no further; the graph stays.

    Args:
        losses: name -> scalar.
        features: the student's, of all levels.

    Returns:
        name -> share; all 0 if no loss depends on the features, or these need no gradient, as those
        of a frozen backbone without a pyramid.

    >>> x = torch.ones(4, requires_grad=True)
    >>> gradient_shares({"detection": 3 * x.sum(), "loss_pkd": x.sum()}, [x])
    {'detection': 0.75, 'loss_pkd': 0.25}
    """
    features = [x for x in features if x.requires_grad]
    norms = {name: _gradient_norm(loss, features) for name, loss in losses.items()}
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}


def log_gradient_shares(
    detection: Mapping[str, Tensor], distillation: Mapping[str, Tensor], features: Sequence[Tensor]
) -> None:
    """Writes the shares into the log, and as ``gradient_share/<name>`` into the event storage.

    Without "loss" in their names, since Detectron2 prints all that have it in each line of its log.

    Args:
        detection: the student's own losses; they count as one.
        distillation: name -> scalar, at the largest weight that its head has in the schedule.
        features: the student's, of all levels.
    """
    losses = dict(distillation)
    if detection:  # a student may learn from its heads alone
        together = torch.stack([loss.float() for loss in detection.values()]).sum()
        losses = {"detection": together, **losses}
    shares = gradient_shares(losses, features)
    logger.info(
        "Share of each loss in the gradient of the student's features: %s.",
        ", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
    )
    if has_event_storage():
        for name, share in shares.items():
            key = f"gradient_share/{name.removeprefix('loss_')}"
            get_event_storage().put_scalar(key, share, smoothing_hint=False)


def _gradient_norm(loss: Tensor, features: Sequence[Tensor]) -> float:
    if not (loss.requires_grad and features):
        return 0.0
    gradients = torch.autograd.grad(loss * _SCALE, features, retain_graph=True, allow_unused=True)
    squares = [g.float().square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0
