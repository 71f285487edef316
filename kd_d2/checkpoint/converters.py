"""Checkpoints of other code bases, converted: who registers what, and the rules for all.

A converter knows the names of one foreign format. Whatever it says is checked here: each entry of
the file is used once or dropped for a reason, and each weight of the model is filled.
"""

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from kd_d2.registry import NamedRegistry

from .atomic import atomic_write
from .names import STUDENT, add_prefix, is_distillation_state, strip_module, student_state
from .reading import CheckpointError, read_checkpoint

__all__ = [
    "CHECKPOINT_CONVERTERS",
    "FOREIGN_NAMES",
    "Conversion",
    "convert_checkpoint",
    "first_few",
    "misfit",
    "write_weights",
]

State = Mapping[str, torch.Tensor]

# Format -> function(state, model_state, constants, student_only) -> Conversion, where ``state`` has
# the file's weights; ``model_state`` is what to fill, in a distiller's names (``student.*`` alone
# with ``student_only``); ``constants`` are all buffers of the model, which the file may repeat.
# It raises CheckpointError with one sentence.
CHECKPOINT_CONVERTERS = NamedRegistry("CHECKPOINT_CONVERTERS", "checkpoint format")

# Format -> how names begin that no other file has. Who gives such a file as weights is told to
# convert it.
FOREIGN_NAMES: dict[str, str] = {}


@dataclass
class Conversion:
    """What became of a foreign checkpoint.

    Attributes:
        state: weights in a distiller's names.
        used: name in the file -> name in ``state``.
        dropped: name in the file -> why it is not used.
    """

    state: "OrderedDict[str, torch.Tensor]" = field(default_factory=OrderedDict)
    used: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def use(self, name: str, ours: str, value: torch.Tensor) -> None:
        """Takes an entry under a new name.

        Raises:
            CheckpointError: if another entry has that name already.
        """
        if ours in self.state:
            other = next(k for k, v in self.used.items() if v == ours)
            raise CheckpointError(
                f"The file has one weight twice: '{other}' and '{name}' are both '{ours}' in kd_d2."
            )
        self.state[ours] = value
        self.used[name] = ours

    @property
    def renamed(self) -> int:
        """How many of the used entries have another name now."""
        return sum(theirs != ours for theirs, ours in self.used.items())

    def summary(self) -> str:
        """Counts, a line for each reason."""
        lines = [
            f"{len(self.used) + len(self.dropped)} weights in the file: {len(self.used)} used "
            f"({self.renamed} under a new name), {len(self.dropped)} dropped"
        ]
        lines += [f"  {n} dropped: {why}" for why, n in Counter(self.dropped.values()).items()]
        return "\n".join(lines)


def first_few(names: Iterable[str], count: int = 3) -> str:
    """
    >>> first_few("abcd"), first_few("ab")
    ('a, b, c, ...', 'a, b')
    """
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def misfit(given: State, wanted: State) -> str:
    """Says how two state dicts differ in names and shapes; "" if they do not.

    >>> misfit({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(3)})
    '1 weight in the file has no place in the model (b), 1 has another shape (a (2,) for (3,))'
    """
    left = [k for k in given if k not in wanted]
    missing = [k for k in wanted if k not in given]
    shapes = [
        f"{k} {tuple(given[k].shape)} for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and given[k].shape != wanted[k].shape
    ]
    parts = []
    for names, one, many in (
        (left, "in the file has no place in the model", "in the file have no place in the model"),
        (missing, "of the model is not in the file", "of the model are not in the file"),
        (shapes, "has another shape", "have another shape"),
    ):
        if names:
            noun = "" if parts else " weight" if len(names) == 1 else " weights"
            parts.append(
                f"{len(names)}{noun} {one if len(names) == 1 else many} ({first_few(names)})"
            )
    return ", ".join(parts)


def convert_checkpoint(source: str, state: State, model: nn.Module) -> Conversion:
    """Convert weights, and load them into the model that they are for.

    Args:
        source: a key of ``CHECKPOINT_CONVERTERS``.
        state: the weights of a foreign checkpoint.
        model: a distiller, or the plain detector that is its student: then ``Conversion.state`` has
            the student alone, in the detector's own names.

    Raises:
        UnknownNameError: if nobody registered ``source``.
        CheckpointError: if the file is of another kind, belongs to another config, or an entry of
            it, or a weight of the model, would be left over.
    """
    convert: Callable[..., Conversion] = CHECKPOINT_CONVERTERS.get(source)
    state = strip_module(state)
    model_state = model.state_dict()
    constants = dict(model.named_buffers(remove_duplicate=False))
    plain = not is_distillation_state(model_state)
    if plain:
        model_state, constants = add_prefix(model_state), add_prefix(constants)
    conversion = convert(state, model_state, constants, student_only=plain)
    forgotten = [k for k in state if (k in conversion.used) == (k in conversion.dropped)]
    if forgotten:
        raise CheckpointError(
            f"The file has {len(forgotten)} entries that are neither used nor known to be "
            f"superfluous ({first_few(forgotten)}): it is not what --from {source} expects."
        )
    problem = misfit(conversion.state, model_state)
    if problem:
        raise CheckpointError(f"The file does not fill the model of this config: {problem}.")
    if plain:
        conversion.state = student_state(conversion.state)
        conversion.used = {k: v[len(STUDENT) :] for k, v in conversion.used.items()}
    model.load_state_dict(conversion.state)
    return conversion


def write_weights(path: str, state: State, model: nn.Module) -> None:
    """Write a checkpoint that holds weights only, once it is proven to load.

    Args:
        path: a local file; its folder is made.
        state: all weights of ``model``.
        model: gets the weights, read back from the disk.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    # copies, so that views into larger storages are not saved with all of them
    state = OrderedDict((k, v.detach().cpu().clone()) for k, v in state.items())
    with atomic_write(path) as f:
        torch.save({"model": state, "__author__": "kd_d2"}, f)
        f.flush()
        model.load_state_dict(read_checkpoint(f.name)["model"])
