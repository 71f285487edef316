"""Lengths of phases and where the iteration comes from."""

import pytest
from detectron2.utils.events import EventStorage

from kd_d2.modeling.phases import current_iteration, phase_length


@pytest.mark.parametrize(
    "value,expected",
    [(None, 0), (0, 0), (0.5, 50), (0.004, 0), (1, 1), (30, 30), (30.0, 30), (500, 500)],
)
def test_iterations_and_fractions(value, expected):
    assert phase_length(value, 100) == expected


@pytest.mark.parametrize("value", [-1, -0.1, 1.5, "auto", True])
def test_everything_else_is_refused(value):
    with pytest.raises(ValueError, match="phase length"):
        phase_length(value, 100)


def test_iteration_comes_from_the_storage():
    assert current_iteration() == 0
    with EventStorage(7):
        assert current_iteration() == 7
