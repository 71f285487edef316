"""Inter-object relation adapter: objects of an image exchange knowledge (paper, section 3.2.2)."""

from torch import Tensor, nn

INTERACT_PATTERNS = ("stuGuided", "labelGuided", "student_fill", "teacher_fill")


def uses_appearance(pattern: str) -> bool:
    """Whether the student's features enter at all."""
    return pattern != "teacher_fill"


def uses_labels(pattern: str) -> bool:
    """Whether the label embeddings enter at all."""
    return pattern != "student_fill"


def uses_attention(pattern: str) -> bool:
    """Whether the objects of an image meet."""
    return uses_appearance(pattern) and uses_labels(pattern)


def relate(
    attention: nn.MultiheadAttention,
    pattern: str,
    appearance: Tensor | None,
    labels: Tensor | None,
    valid: Tensor,
    num_levels: int,
) -> Tensor:
    """Interacted embeddings of all levels, in one call: levels and images are the batch axis.

    Args:
        attention: with ``batch_first``.
        pattern: one of ``INTERACT_PATTERNS``. "stuGuided": appearance asks, labels answer.
            "labelGuided": labels ask, appearance answers. The fills return one side as it is.
        appearance: (L, B, M, C), or None where the pattern does not use it.
        labels: (B, M, C), or None where the pattern does not use it.
        valid: (B, M) bool; rows with False answer nobody.

    Returns:
        (L, B, M, C); the value in fillers has no meaning.
    """
    if labels is None:
        return appearance
    labels = labels.expand(num_levels, *labels.shape)
    if appearance is None:
        return labels
    asking, answering = appearance, labels
    if pattern == "labelGuided":
        asking, answering = labels, appearance
    answering = answering.flatten(0, 1)
    # need_weights keeps PyTorch's plain attention. Its softmax has an exactly zero gradient for a
    # lone row, as it must; the fused kernels' backward rounds to something close to zero.
    related, _ = attention(
        asking.flatten(0, 1),
        answering,
        answering,
        key_padding_mask=~valid.repeat(num_levels, 1),
        need_weights=True,
    )
    return related.unflatten(0, (num_levels, -1))
