import pytest
import torch
from timing import PartMeter, alternate, clock, medians
from torch import nn


class FakeClock:
    """A clock that stands still until somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


def test_steps_take_turns_and_each_begins_a_round():
    calls, clock = [], FakeClock()

    def step(name, seconds):
        return lambda: (calls.append(name), clock.work(seconds))

    seconds = alternate({"a": step("a", 1), "b": step("b", 3)}, 3, warmup=1, now=clock)
    assert seconds == {"a": [1, 1, 1], "b": [3, 3, 3]}
    assert "".join(calls) in ("abbaabba", "baabbaab")


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        alternate({}, 3)
    with pytest.raises(ValueError, match="at least one"):
        alternate({"a": lambda: None}, 0)


def test_medians_of_rows():
    assert medians([{"a": 5.0, "b": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 9.0}]) == {
        "a": 2.0,
        "b": 2.0,
    }


def test_the_cpu_clock_needs_no_synchronisation():
    assert clock("cpu")() <= clock("cpu")()


class Worker(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, *args):
        self.clock.work(self.seconds)
        return {"loss": torch.ones(())}


class ToyStages:
    def __init__(self, clock):
        self.clock = clock

    def run(self, batch):
        self.clock.work(100.0)


class ToyDistiller(nn.Module):
    """Calls its parts as Distiller does."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.teacher = Worker(clock, 20.0)
        self.heads = nn.ModuleDict({"one": Worker(clock, 3.0), "two": Worker(clock, 4.0)})
        self.stages = ToyStages(clock)

    def teach(self, batch):
        self.teacher(batch)
        self.clock.work(50.0)

    def forward(self, batch):
        self.stages.run(batch)
        self.teach(batch)
        self.clock.work(0.5)
        return {name: head(batch)["loss"] for name, head in self.heads.items()}


def test_parts_of_a_distiller_add_up_and_leave_it_as_it_was():
    clock = FakeClock()
    distiller = ToyDistiller(clock)
    losses, parts = PartMeter(distiller, clock).measure([])
    assert set(losses) == {"one", "two"}
    assert parts == {
        "student": 100.0,
        "teacher": 20.0,
        "second head pass": 50.0,
        "adapter + loss": 7.0,
        "rest": 0.5,
    }
    assert "run" not in distiller.stages.__dict__ and "teach" not in distiller.__dict__
    assert not distiller.teacher._forward_hooks and not distiller.teacher._forward_pre_hooks
