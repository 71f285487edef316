"""A student that begins with its teacher's neck and head (MODEL.KD.INHERIT)."""

import logging
from collections.abc import Collection

import torch
from torch import nn

logger = logging.getLogger(__name__)

PARTS = ("neck", "head")


def inherit(student: nn.Module, teacher: nn.Module, parts: Collection[str]) -> list[str]:
    """Copies what agrees in name, shape and kind of layer; norms with all that they keep.

    The raw backbone is never copied. Counters and other states of the teacher's training stay. Of
    layers in a row, those up to the first of another kind.

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
    strangers = _other_kinds(student, teacher)
    fitting = [
        name
        for name, value in own.items()
        if name in given and given[name].shape == value.shape and not name.startswith(strangers)
    ]
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
    norms = {
        f"{prefix}.{name}": value
        for prefix, module in detector.named_modules()
        if hasattr(module, "running_mean")
        for name, value in module.named_buffers(recurse=False)
    }
    return dict(detector.named_parameters()) | norms


def _other_kinds(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of layers that are of one kind here and of another there.

    Towers with norms and without have layers of equal names and shapes that do different things.
    """
    theirs, strangers = dict(teacher.named_modules()), []
    for prefix, module in student.named_modules():
        other = theirs.get(prefix)
        if not isinstance(module, nn.Sequential) or not isinstance(other, nn.Sequential):
            continue
        alike = [_kind(a) is _kind(b) for a, b in zip(module, other, strict=False)]
        if False in alike:
            strangers += [f"{prefix}.{i}." for i in range(alike.index(False), len(module))]
    return tuple(strangers)


def _kind(layer: nn.Module) -> type:
    # Detectron2's Conv2d is torch's, with an optional norm
    return nn.Conv2d if isinstance(layer, nn.Conv2d) else type(layer)


def _modules(names: list[str]) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
