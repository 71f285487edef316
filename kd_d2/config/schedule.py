"""A schedule of another length."""

from collections.abc import Sequence

__all__ = ["scaled_steps"]


def scaled_steps(steps: Sequence[int], length: int, new_length: int) -> tuple[int, ...]:
    """SOLVER.STEPS at the same shares of a schedule of another length.

    In a very short one steps may fall together, or on its end, where they change nothing.

    >>> scaled_steps((60, 80), 90, 18), scaled_steps((60, 80), 90, 1)
    ((12, 16), ())
    """
    scaled = {max(1, round(step * new_length / length)) for step in steps}
    return tuple(sorted(step for step in scaled if step < new_length))
