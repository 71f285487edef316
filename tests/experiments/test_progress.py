import io
from pathlib import Path

import pytest

from kd_d2.experiments.jobs import Job
from kd_d2.experiments.progress import Progress, describe_job, remaining_seconds


def job(status, done=0, seconds=None, cost=1.0, iterations=100, ap=None):
    result = Job("name", "c.yaml", Path("out"), iterations, cost=cost)
    result.status, result.done, result.seconds_per_iteration, result.ap = status, done, seconds, ap
    return result


def test_nobody_knows_before_something_is_measured():
    assert remaining_seconds([job("running"), job("waiting")], 2) is None
    assert remaining_seconds([job("kept", 100)], 2) == 0


def test_runs_side_by_side_end_with_the_slowest():
    jobs = [job("running", 50, 2.0), job("running", 90, 1.0)]
    assert remaining_seconds(jobs, 2) == 100


def test_a_waiting_job_takes_the_first_free_worker_at_its_cost():
    # The measured one needs 1 s for an iteration of cost 1; 20 left, then 100 of cost 1.5.
    jobs = [job("running", 80, 1.0), job("running", 50, 2.0, cost=2.0), job("waiting", cost=1.5)]
    assert remaining_seconds(jobs, 2) == 20 + 150
    assert remaining_seconds(jobs, 3) == 150


def test_words_for_each_state():
    assert describe_job(job("waiting")) == "waiting"
    assert describe_job(job("running")) == "starting"
    assert describe_job(job("running", 40, ap=3.25)) == "40/100, AP 3.2"
    assert describe_job(job("running", 100)) == "last evaluation"
    assert describe_job(job("running", 40, ap=float("nan"))) == "40/100"
    assert describe_job(job("kept", 100)) == "done before"


def test_a_log_gets_a_line_now_and_then():
    stream = io.StringIO()
    progress = Progress(2, stream, every=1000)
    for _ in range(3):
        progress([job("running", 40, 1.0)])
    (line,) = stream.getvalue().splitlines()
    assert line == "[ 0:00] name: 40/100 - about 1 min left"


def test_a_terminal_gets_bars_that_are_redrawn():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(2, stream)
    progress([job("running", 50, 1.0), job("waiting")])
    progress([job("running", 50, 1.0), job("waiting")])
    text = stream.getvalue()
    assert text.count("[############............] 50/100") == 2
    assert text.count("\x1b[3A") == 1  # the second time it goes up over two bars and a line


@pytest.mark.parametrize("sentence", ["one core", "two cores"])
def test_the_machine_is_named(sentence):
    from kd_d2.experiments.machine import describe_machine, machine_sentence

    machine = describe_machine() | {"cores": 1 if sentence == "one core" else 2}
    assert f"with {machine['cores']} core" in machine_sentence(machine)
    assert ("cores" in machine_sentence(machine)) == (sentence == "two cores")
