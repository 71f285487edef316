"""Random numbers as a function of where the run is, so that a resumed run draws the same."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["StepSeed", "seed_from", "seeded"]


def seed_from(*numbers: int) -> int:
    """Return a 32-bit seed that differs for each tuple of non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators inside, and restore them afterwards."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


class StepSeed(HookBase):
    """Seeds all generators before each step from (SEED, iteration, rank).

    What a detector draws in a step (its proposals' subsets, dropout) is then the same in a resumed
    run as in an uninterrupted one, without generator states in the checkpoint.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        step_seed = seed_from(self.seed, self.trainer.iter, comm.get_rank())
        random.seed(step_seed)
        np.random.seed(step_seed)
        torch.manual_seed(step_seed)
