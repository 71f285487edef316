"""Outputs of a detector's submodules, kept while it runs."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping

from torch import nn

from kd_d2.registry import UnknownNameError


@contextlib.contextmanager
def captured_taps(detector: nn.Module, submodules: Mapping[str, str]) -> Iterator[dict[str, list]]:
    """While open, collects the outputs of submodules, one entry a call.

    Args:
        submodules: the name of a tap -> that of the submodule.

    Raises:
        UnknownNameError: for a submodule that the detector does not have; names the nearest.
    """
    taps: dict[str, list] = {name: [] for name in submodules}
    handles = []
    try:
        for name, outputs in taps.items():
            handles.append(
                find_submodule(detector, submodules[name]).register_forward_hook(
                    lambda module, args, output, outputs=outputs: outputs.append(output)
                )
            )
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def find_submodule(detector: nn.Module, name: str) -> nn.Module:
    """The submodule of that name.

    Raises:
        UnknownNameError: there is none; names the nearest.
    """
    try:
        return detector.get_submodule(name)
    except AttributeError:
        near = difflib.get_close_matches(name, dict(detector.named_modules()), n=3, cutoff=0.3)
        raise UnknownNameError(
            f"{type(detector).__name__} has no submodule {name!r} to tap; "
            f"the nearest are {', '.join(near)}."
        ) from None
