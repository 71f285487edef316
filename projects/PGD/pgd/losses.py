"""The two distillation losses of PGD, of one level each (section 3.3 of the paper).

Shapes: N images, C channels, H x W cells of the level.
"""

from torch import Tensor

__all__ = ["channel_attention", "cls_loss", "reg_loss", "spatial_attention"]


def spatial_attention(x: Tensor, temperature: float) -> Tensor:
    """``H W softmax`` over the cells of the mean absolute feature; (N, C, H, W) -> (N, H, W).

    >>> import torch
    >>> spatial_attention(torch.tensor([[[[0.0, -1.0]]]]), 0.5)
    tensor([[[0.2384, 1.7616]]])
    """
    mean = x.abs().mean(1).flatten(1) / temperature
    return (mean.softmax(1) * mean.shape[1]).view(len(x), *x.shape[2:])


def channel_attention(x: Tensor, temperature: float) -> Tensor:
    """``C softmax`` over the channels of the absolute feature, in each cell by itself.

    Args:
        x: (N, C, ...).

    >>> import torch
    >>> channel_attention(torch.tensor([[0.0, -1.0]]), 0.5)
    tensor([[0.2384, 1.7616]])
    """
    return (x.abs() / temperature).softmax(1) * x.shape[1]


def cls_loss(
    student: Tensor,
    teacher: Tensor,
    foreground: Tensor,
    background: Tensor,
    *,
    alpha: float,
    beta: float,
    delta: float,
    temperature: float,
    level_weight: float = 1.0,
    share_masks: bool = False,
) -> Tensor:
    """Imitation in the classification tower: ``w (alpha L_fg + beta L_bg) + delta L_att``.

    Squared differences, weighted by the teacher's attentions, are summed over channels and averaged
    over the foreground and over the background of each image; the attentions are imitated in
    all cells.

    Args:
        student, teacher: (N, C, H, W); the teacher's side is a constant.
        foreground, background: (N, H, W), weights of the cells.
        alpha, beta, delta: weights of the three terms.
        temperature: of both attentions.
        level_weight: w.
        share_masks: apply the masks of all images to each image, as PGD's release does.

    Returns:
        scalar, float32.
    """
    student, teacher = student.float(), teacher.detach().float()
    teacher_channel = channel_attention(teacher, temperature)
    teacher_spatial = spatial_attention(teacher, temperature)
    error = teacher_spatial * (teacher_channel * (student - teacher).square()).sum(1)
    weights = level_weight * (alpha * _shares(foreground) + beta * _shares(background))
    if share_masks:
        weights = weights.sum(0, keepdim=True)
    feature = (weights * error).sum()
    attention = (channel_attention(student, temperature) - teacher_channel).abs().sum() / error[
        0
    ].numel() + (spatial_attention(student, temperature) - teacher_spatial).abs().sum()
    return (feature + delta * attention) / len(student)


def reg_loss(
    student: Tensor,
    teacher: Tensor,
    foreground: Tensor,
    *,
    gamma: float,
    delta: float,
    temperature: float,
    max_positives: int | None = None,
) -> Tensor:
    """Imitation in the box tower, at the foreground of all images together.

    Mean over the foreground cells of ``gamma * weight * mean_c(A (S - T)^2)`` and of
    ``delta * sum_c |A(S) - A(T)|``; 0 without a foreground.

    Args:
        student, teacher: (N, C, H, W); the teacher's side is a constant.
        foreground: (N, H, W).
        gamma, delta: weights of the two terms.
        temperature: of the attention.
        max_positives: no image has more foreground cells than this. So many are looked at, since
            to count them would make the host wait for a GPU. None: all cells.

    Returns:
        scalar, float32.
    """
    foreground = foreground.flatten(1)
    weights, index = foreground.topk(min(max_positives or foreground.shape[1], foreground.shape[1]))
    student, teacher = (
        x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1)).float()
        for x in (student, teacher.detach())
    )  # (N, C, P)
    own, aim = (channel_attention(x, temperature) for x in (student, teacher))
    feature = weights * (aim * (student - teacher).square()).mean(1)
    attention = (weights != 0) * (own - aim).abs().sum(1)
    return (gamma * feature + delta * attention).sum() / (weights != 0).sum().clamp(min=1)


def _shares(mask: Tensor) -> Tensor:
    """Each image's mask, divided by the number of its cells that are not 0."""
    return mask / (mask != 0).sum((1, 2), keepdim=True).clamp(min=1)
