"""A student that begins with its teacher's neck and head (MODEL.KD.INHERIT)."""

import logging
from collections.abc import Collection

import torch
from torch import nn

logger = logging.getLogger(__name__)

PARTS = ("neck", "head")


def inherit(student: nn.Module, teacher: nn.Module, parts: Collection[str]) -> list[str]:
    """Copies what agrees in name and shape, parameters and statistics of norms alike.

    The raw backbone is never copied. Counters and other states of the teacher's training stay.

    Args:
        student, teacher: detectors.
        parts: of :data:`PARTS`; "neck" is the feature pyramid, "head" all besides the backbone.

    Returns:
        names of what was copied.

    Raises:
        ValueError: nothing of these parts fits.
    """
    given = {name: value for name, value in _weights(teacher).items() if part_of(name) in parts}
    own = {name: value for name, value in _weights(student).items() if part_of(name) in parts}
    fitting = [n for n, v in own.items() if n in given and given[n].shape == v.shape]
    if not fitting:
        raise ValueError(
            f"MODEL.KD.INHERIT is {list(parts)}, but nothing of these parts of the "
            f"{type(teacher).__name__} fits the {type(student).__name__}: leave it empty."
        )
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(given[name])
    left = [name for name in own if name not in set(fitting)]
    logger.info(
        "The student begins with %d weights of its teacher's %s (%s); %s.",
        len(fitting),
        " and ".join(parts),
        ", ".join(_modules(fitting)),
        f"its own initial values stay in {', '.join(left)}" if left else "that is all of them",
    )
    return fitting


def part_of(name: str) -> str:
    """The part that a weight of a detector belongs to, by its name in the state dict.

    >>> [part_of(n) for n in ("backbone.bottom_up.stem.conv1.weight", "backbone.fpn_output3.bias",
    ...                       "head.cls_score.bias")]
    ['backbone', 'neck', 'head']
    """
    if not name.startswith("backbone."):
        return "head"
    return "neck" if name.startswith(("backbone.fpn_", "backbone.top_block.")) else "backbone"


def _weights(detector: nn.Module) -> dict[str, torch.Tensor]:
    statistics = {
        name: value
        for name, value in detector.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }
    return dict(detector.named_parameters()) | statistics


def _modules(names: list[str]) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
