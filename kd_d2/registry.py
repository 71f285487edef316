"""fvcore's Registry with an error that helps."""

import difflib
from collections.abc import Iterable

from fvcore.common.registry import Registry


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence about a name that nobody knows: the nearest names first, then all of them.

    >>> unknown_name("teacher", "Forzen", ["Frozen", "LabelEncoder"])
    "Unknown teacher 'Forzen': did you mean 'Frozen'? Known are Frozen, LabelEncoder."
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    guess = f": did you mean {' or '.join(map(repr, near))}?" if near else "."
    return f"Unknown {kind} {name!r}{guess} Known are {', '.join(known) or '(none)'}."


class UnknownNameError(KeyError):
    """A name that nobody registered; says which are known."""

    def __str__(self) -> str:
        return self.args[0]  # KeyError would put it in quotes


class NamedRegistry(Registry):
    """A registry that knows what its entries are called in an error message."""

    def __init__(self, name: str, kind: str):
        super().__init__(name)
        self.kind = kind

    def register(self, name=None):
        """As fvcore's, and ``@register("Name")`` registers under another name than the class's."""
        if not isinstance(name, str):
            return super().register(name)

        def register_as(obj):
            self._do_register(name, obj)
            return obj

        return register_as

    def get(self, name: str):
        """Returns the registered object, or raises UnknownNameError with the nearest names."""
        if name not in self:
            raise UnknownNameError(unknown_name(self.kind, name, [k for k, _ in self]))
        return super().get(name)
