"""Factors of the distillation heads' losses over the schedule (MODEL.KD.HEAD_WEIGHTS)."""

from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]


class HeadWeight:
    """A factor that depends on the iteration alone: constant, or piecewise linear."""

    def __init__(self, weight: float | Curve, max_iter: int):
        """
        Args:
            weight: a number, or points (share of the schedule from 0 to 1, factor) in rising order
                of their shares; straight lines between them, constant before the first and after
                the last. Two points of one share make a step, at which the second counts.
            max_iter: length of the schedule.

        Raises:
            ValueError: the points are not in order, or not within the schedule.

        >>> [HeadWeight([(0, 0), (0.1, 2), (0.9, 2), (0.9, 0)], 100)(i) for i in (0, 5, 50, 90)]
        [0.0, 1.0, 2.0, 0.0]
        """
        constant = isinstance(weight, int | float)
        points = [(0.0, weight)] if constant else [tuple(p) for p in weight]
        shares = [share for share, _ in points]
        if not points or shares != sorted(shares) or shares[0] < 0 or shares[-1] > 1:
            raise ValueError(
                f"MODEL.KD.HEAD_WEIGHTS has {weight!r}: it must be a number, or points (share of "
                "the schedule, factor) with rising shares from 0 to 1."
            )
        self.points = [(float(share), float(factor)) for share, factor in points]
        self.max_iter = max_iter

    @property
    def is_constant(self) -> bool:
        return len({factor for _, factor in self.points}) == 1

    @property
    def largest(self) -> float:
        """The largest factor of the schedule."""
        return max(factor for _, factor in self.points)

    def __call__(self, iteration: int) -> float:
        """The factor in an iteration, counted from 0."""
        share = iteration / self.max_iter
        before = [point for point in self.points if point[0] <= share]
        after = [point for point in self.points if point[0] > share]
        if not before or not after:
            return before[-1][1] if before else after[0][1]
        (left, low), (right, high) = before[-1], after[0]
        return low + (high - low) * (share - left) / (right - left)
