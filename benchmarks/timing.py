"""Clocks: several steps in turns, and the parts of a distiller's forward pass."""

import contextlib
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import nn


def clock(device: str) -> Callable[[], float]:
    """A clock in seconds that first waits until the device has done what it was told."""
    if not device.startswith("cuda"):
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def alternate(
    steps: dict[str, Callable[[], object]],
    iterations: int,
    warmup: int = 2,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call of every step.

    The steps take turns, and each round begins with another one, so that a machine that becomes
    slower or warmer does so for all of them.

    Raises:
        ValueError: if there is nothing to measure.
    """
    if not steps or iterations < 1:
        raise ValueError("alternate needs at least one step and one iteration.")
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-warmup, iterations):
        for k in range(len(names)):
            name = names[(i + k) % len(names)]
            start = now()
            steps[name]()
            if i >= 0:
                seconds[name].append(now() - start)
    return seconds


class PartMeter:
    """Splits a distiller's forward pass into student, teacher, second pass, regions, and heads.

    It reads a counter (a clock, or FLOPs so far) whenever the distiller enters and leaves a part.
    What the wiring does between the parts is ``rest``; of two networks that learn together, their
    labels and losses, too.
    """

    PARTS = ("student", "teacher", "second head pass", "regions", "adapter + loss", "rest")

    def __init__(self, distiller: nn.Module, read: Callable[[], float]):
        self.distiller = distiller
        self.regions = getattr(distiller, "regions", None)
        self.read = read
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """While open, the counter is read around each part."""
        distiller, teacher = self.distiller, self.distiller.teacher
        # Instance attributes shadow the methods; hooks do for modules.
        shadows = [(distiller.stages, "run", "student"), (distiller, "teach", "teach")]
        if self.regions is not None:
            shadows.append((self.regions, "compare", "regions"))
        for owner, method, part in shadows:
            owner.__dict__[method] = self._wrap(getattr(owner, method), part)
        modules = [(teacher, "teacher")]
        modules += [(head, "adapter + loss") for head in distiller.heads.values()]
        handles = []
        for module, part in modules:
            handles += self._hook(module, part)
        try:
            yield
        finally:
            for owner, method, _ in shadows:
                del owner.__dict__[method]
            for handle in handles:
                handle.remove()

    def _wrap(self, function: Callable, part: str) -> Callable:
        def measured(*args, **kwargs):
            start = self.read()
            result = function(*args, **kwargs)
            self._add(part, start)
            return result

        return measured

    def _hook(self, module: nn.Module, part: str) -> list:
        starts: list[float] = []
        return [
            module.register_forward_pre_hook(lambda m, args: starts.append(self.read())),
            module.register_forward_hook(lambda m, args, out: self._add(part, starts.pop())),
        ]

    def _add(self, part: str, start: float) -> None:
        self._spent[part] = self._spent.get(part, 0) + self.read() - start

    def measure(self, batched_inputs: list[dict]) -> tuple[dict, dict[str, float]]:
        """One forward pass: its losses, and part -> what the counter moved."""
        # A frozen teacher runs its own stages inside `teacher`, not through distiller.stages.
        self._spent = dict.fromkeys((*self.PARTS, "teach"), 0)
        with self._attached():
            start = self.read()
            losses = self.distiller(batched_inputs)
            total = self.read() - start
        spent = self._spent
        spent["second head pass"] = spent.pop("teach") - spent["teacher"]
        spent["rest"] = total - sum(spent[part] for part in self.PARTS[:-1])
        parts = [part for part in self.PARTS if part != "regions" or self.regions]
        return losses, {part: spent[part] for part in parts}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each key over the rows.

    >>> medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0}])
    {'a': 2.0}
    """
    return {key: median(row[key] for row in rows) for key in rows[0]}
