"""Names of weights: what belongs to whom in a state dict, and moving names between models.

A distiller's state dict has ``student.*`` (the names of the plain detector behind the prefix),
``teacher.*`` (trainable teachers only) and ``heads.*``.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch

__all__ = ["add_prefix", "is_distillation_state", "peer_state", "strip_module", "student_state"]

STUDENT = "student."
PEER = "teacher.detector."


def is_distillation_state(names: Iterable[str]) -> bool:
    """Whether these are the names of a distiller's weights.

    >>> is_distillation_state(["student.head.weight"]), is_distillation_state(["head.weight"])
    (True, False)
    """
    return any(name.startswith(STUDENT) for name in names)


def student_state(state: Mapping[str, torch.Tensor]) -> "OrderedDict[str, torch.Tensor]":
    """Return the plain detector's part of a distiller's state dict, with the detector's own names.

    A state dict without ``student.`` names is that of a plain detector and comes back as it is.
    """
    if not is_distillation_state(state):
        return _with_metadata(OrderedDict(state), getattr(state, "_metadata", None))
    return _part(state, STUDENT)


def peer_state(state: Mapping[str, torch.Tensor]) -> "OrderedDict[str, torch.Tensor]":
    """Return what a distiller's state dict has of a detector that learned beside the student.

    With the detector's own names; empty if there is none.
    """
    return _part(state, PEER)


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> "OrderedDict[str, torch.Tensor]":
    plain = OrderedDict((k[len(prefix) :], v) for k, v in state.items() if k.startswith(prefix))
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        root = prefix[:-1]
        metadata = OrderedDict(
            (k[len(root) + 1 :], v)
            for k, v in metadata.items()
            if k == root or k.startswith(prefix)
        )
    return _with_metadata(plain, metadata)


def add_prefix(
    state: Mapping[str, torch.Tensor], prefix: str = STUDENT
) -> "OrderedDict[str, torch.Tensor]":
    """Return ``state`` with ``prefix`` in front of each name."""
    renamed = OrderedDict((prefix + k, v) for k, v in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        metadata = OrderedDict(((prefix + k).rstrip("."), v) for k, v in metadata.items())
    return _with_metadata(renamed, metadata)


def strip_module(state: Mapping[str, torch.Tensor]) -> "OrderedDict[str, torch.Tensor]":
    """Remove the ``module.`` that a checkpoint saved from inside DDP carries."""
    if not all(k.startswith("module.") for k in state):
        return _with_metadata(OrderedDict(state), getattr(state, "_metadata", None))
    return OrderedDict((k[len("module.") :], v) for k, v in state.items())


def _with_metadata(state: "OrderedDict", metadata) -> "OrderedDict":
    # Modules read their format version from here and rename keys of older versions by it.
    if metadata is not None:
        state._metadata = metadata
    return state
