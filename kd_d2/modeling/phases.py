"""Lengths of training phases, and the iteration that decides which phase it is.

Phases depend on the iteration alone: a resumed run is in the right phase without any state.
"""

from detectron2.utils.events import get_event_storage, has_event_storage


def phase_length(value: int | float | None, max_iter: int) -> int:
    """Length of a phase in iterations.

    Args:
        value: iterations, or a fraction (a float below 1) of the schedule; None is no phase.
        max_iter: length of the schedule, ``SOLVER.MAX_ITER``.

    Raises:
        ValueError: for anything else.

    >>> phase_length(30000, 180000), phase_length(0.25, 180000), phase_length(None, 10)
    (30000, 45000, 0)
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(
            f"A phase length must be a number of iterations or a fraction below 1, got {value!r}."
        )
    if value < 1:
        return round(value * max_iter)
    if value != int(value):
        raise ValueError(
            f"A phase length of 1 or more counts iterations and must be whole, got {value!r}."
        )
    return int(value)


def current_iteration() -> int:
    """The trainer's iteration, 0 where no :class:`EventStorage` is open (tests, benchmarks)."""
    return get_event_storage().iter if has_event_storage() else 0
