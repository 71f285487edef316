"""What LGD's teacher can tell of itself: the attention between the objects of an image.

See ``kd_d2.visualization.attention`` for what is done with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class ObjectRelations:
    """Attention in one image, of R rows: the context (if there is one), then the objects.

    Attributes:
        weights: level name -> (R, R), averaged over the attention heads; rows sum to 1.
        rows: for each row the number of its object in the annotations; None for the context, and
            for the dummy of an image without objects.
        asking, answering: what rows and columns stand for.
    """

    weights: dict[str, Tensor]
    rows: list[int | None]
    asking: str
    answering: str


def split_attention(
    weights: Tensor,
    levels: Sequence[str],
    counts: Sequence[int],
    context_box: bool,
    pattern: str,
) -> list[ObjectRelations]:
    """Takes a batch's attention apart, without the fillers.

    Args:
        weights: (L * B, M, M), as ``relate`` has them computed.
        levels: L names.
        counts: number of objects of each of the B images.
        context_box: the first row of each image is the context.
        pattern: "stuGuided" or "labelGuided".
    """
    sides = ("appearance", "label")
    asking, answering = sides if pattern == "stuGuided" else sides[::-1]
    by_level = weights.unflatten(0, (len(levels), len(counts)))
    images = []
    for i, n in enumerate(counts):
        rows = [None] * (context_box or n == 0) + list(range(n))
        r = len(rows)
        parts = {name: w[i, :r, :r] for name, w in zip(levels, by_level, strict=True)}
        images.append(ObjectRelations(parts, rows, asking, answering))
    return images
