"""A student that begins with its teacher's neck and head (MODEL.KD.INHERIT)."""

import logging
from collections.abc import Collection, Mapping

import torch
from torch import nn

logger = logging.getLogger(__name__)

PARTS = ("neck", "head", "box_head", "rpn")
# Parts that are copied whole or not at all
_WHOLE = ("box_head", "rpn")


def inherit(student: nn.Module, teacher: nn.Module, parts: Collection[str]) -> list[str]:
    """Copies what agrees in name, shape and kind of layer; norms with all that they keep.

    The raw backbone is never copied. Counters and other states of the teacher's training stay. Of
    layers in a row, those up to the first of another kind.

    Args:
        student, teacher: detectors.
        parts: of :data:`PARTS`; "neck" is the feature pyramid, "head" all besides the backbone. Of
            an R-CNN's head "box_head" (with its predictor) and "rpn" can be had alone, but whole.

    Returns:
        names of what was copied.

    Raises:
        ValueError: nothing of these parts fits, or not all of a part that is copied whole.
    """
    given, own = (
        {name: value for name, value in _weights(x).items() if parts_of(name) & set(parts)}
        for x in (teacher, student)
    )
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
    _check_whole(set(parts).intersection(_WHOLE), own, given, fitting)
    _check_units(student, teacher, fitting)
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


def parts_of(name: str) -> set[str]:
    """The parts that a weight of a detector belongs to, by its name in the state dict.

    >>> names = "backbone.bottom_up.stem.conv1.weight", "backbone.fpn_output3.bias"
    >>> [*map(parts_of, names)], sorted(parts_of("roi_heads.box_head.fc1.weight"))
    ([{'backbone'}, {'neck'}], ['box_head', 'head'])
    """
    if name.startswith(("backbone.fpn_", "backbone.top_block.")):
        return {"neck"}
    if name.startswith("backbone."):
        return {"backbone"}
    if name.startswith(("roi_heads.box_head.", "roi_heads.box_predictor.")):
        return {"head", "box_head"}
    return {"head", "rpn"} if name.startswith("proposal_generator.") else {"head"}


def _check_whole(
    parts: Collection[str],
    own: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    fitting: Collection[str],
) -> None:
    for part in sorted(parts):
        missing = [name for name in own if part in parts_of(name) and name not in fitting]
        if missing or not any(part in parts_of(name) for name in own):
            name = (missing or [part])[0]
            shapes = [tuple(side[name].shape) if name in side else "none" for side in (own, given)]
            raise ValueError(
                f"MODEL.KD.INHERIT has {part}, which is copied whole, and that of the teacher does "
                f"not fit the student's ({name}: {shapes[1]} in the teacher, {shapes[0]} in the "
                "student): channels of the pyramid, pooling size, FC_DIM and classes must be equal."
            )


def _check_units(student: nn.Module, teacher: nn.Module, fitting: Collection[str]) -> None:
    """Layers that predict boxes mean something else where these are in other units.

    Raises:
        ValueError: an inherited one would.
    """
    theirs = dict(teacher.named_modules())
    for name, module in student.named_modules():
        own, other = (
            getattr(getattr(x, "box2box_transform", None), "weights", None)
            for x in (module, theirs.get(name))
        )
        # a dense detector's layers are not in the module that knows their units
        inherited = any(n.startswith(f"{name or 'head'}.") for n in fitting)
        if inherited and own is not None and other is not None and tuple(own) != tuple(other):
            raise ValueError(
                f"MODEL.KD.INHERIT would copy layers that predict boxes in units of "
                f"{tuple(other)}, and the student's are {tuple(own)} (BBOX_REG_WEIGHTS of "
                f"{name or 'the detector'}): give both the same, or leave the part out."
            )


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
