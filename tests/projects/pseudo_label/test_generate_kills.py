"""Workers that die, are stopped, or are many: the shards are those of one that nobody disturbed."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from generate_cases import Case, done, raw_bytes

from kd_d2.projects.pseudo_label.run_folder import RunFolder


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Five shards, of a bad image, too, for each of two teachers."""
    folder = tmp_path_factory.mktemp("kills")
    case = Case.make(folder, images=14, archs=("RetinaNet", "FasterRCNN"))
    (folder / "images" / "004.png").write_bytes(b"")
    return case


SETTINGS = {"batch": 2, "max_failed_share": 0.1}
HANGS = 600  # seconds; no measure of speed, as a loaded machine may take minutes to start a process


class Undisturbed(NamedTuple):
    content: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(case):
    """What one worker makes that nobody disturbs, and how long that takes."""
    run, report = case.generate("undisturbed", **SETTINGS)
    content = raw_bytes(run)
    assert len(content) == 2 * 2 * 5
    return Undisturbed(content, report.done_here / report.images_per_second)


def wait_until(happened, process=None):
    """Returns also when the process has ended."""
    deadline = time.monotonic() + HANGS
    while not happened():
        assert time.monotonic() < deadline
        if process is not None and not process.is_alive():
            return
        time.sleep(0.002)


def assert_complete(case, name, undisturbed):
    run = RunFolder(case.folder / name)
    assert raw_bytes(run) == undisturbed.content
    (line,) = (run.folder / "errors.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "004.png"
    assert not list(run.folder.rglob("*.claim"))


def time_passes(folder):
    """Where there are no hard links, who is killed while a claim is written leaves it empty, and
    so judged by its age alone.

    Claims that say whose they are stay young: they are free as soon as that process has ended.
    """
    for path in folder.rglob("*.claim"):
        with contextlib.suppress(FileNotFoundError):  # released by a worker that lives
            if not path.stat().st_size:
                os.utime(path, (1, 1))


def kill_at_random(case, name, undisturbed, kills, num_workers):
    """Kills workers at random moments, so often; runs that are whole by then make way for others.

    Half of the kills are while shards are written, the others anywhere, also before the first.
    """
    generator, hits, runs = random.Random(kills), 0, 0
    while hits < kills:
        runs += 1
        folder = case.folder / f"{name}-{runs}"
        while done(folder) < 10 and hits < kills:
            before = done(folder)
            process = case.start(folder.name, num_workers=num_workers, **SETTINGS)
            if hits % 2:
                process.join(generator.uniform(0, 1.5))
            else:
                wait_until(lambda f=folder, b=before: done(f) > b, process)
                process.join(generator.uniform(0, undisturbed.seconds / 3))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            hits += process.exitcode == -signal.SIGKILL
        case.generate(folder.name, **SETTINGS)
        assert_complete(case, folder.name, undisturbed)


def test_killed_at_random_moments(case, undisturbed):
    kill_at_random(case, "killed", undisturbed, kills=4, num_workers=0)


@pytest.mark.slow
def test_killed_at_many_random_moments(case, undisturbed):
    kill_at_random(case, "killed-often", undisturbed, kills=20, num_workers=1)


def test_killed_while_it_writes_a_claim(case, undisturbed):
    run, _ = case.prepare("claiming", **SETTINGS)
    raw = run.raw(run.teachers[1])
    raw.mkdir(parents=True)
    for path in (run.folder / "run", run.folder / "errors", raw / run.shards[2].name):
        path.with_name(f"{path.name}.claim").touch()
    process = case.start("claiming", **SETTINGS)
    process.join(1)
    assert process.is_alive() and done(run.folder) == 0  # waits
    process.kill()
    process.join()
    time_passes(run.folder)
    case.generate("claiming", **SETTINGS)
    assert_complete(case, "claiming", undisturbed)


def test_killed_before_any_file_is_there(case, undisturbed):
    # images.jsonl and run.json, and of each shard that itself and what says that it is done
    for kill_at, there in ((1, 0), (2, 0), (3, 0), (1, 0), (2, 0), (4, 1), (1, 1)):
        process = case.start("files", kill_at, **SETTINGS)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert done(case.folder / "files") == there
    case.generate("files", **SETTINGS)
    assert_complete(case, "files", undisturbed)


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers(case, undisturbed, workers):
    name = f"{workers}-workers"
    processes = [case.start(name, **SETTINGS) for _ in range(workers)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert_complete(case, name, undisturbed)


def test_a_worker_whose_companion_dies_does_its_shards(case, undisturbed):
    victim = case.start("companions", pause=0.05, **SETTINGS)
    folder = case.folder / "companions"
    wait_until(lambda: done(folder) > 0, victim)
    os.kill(victim.pid, signal.SIGSTOP)
    state = Path(f"/proc/{victim.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
    claims = folder.glob("raw/*/*.claim")
    reachable = 10 - sum(not path.with_suffix(".done").exists() for path in claims)
    assert 1 <= reachable < 10
    survivor = case.start("companions", **SETTINGS)
    wait_until(lambda: done(folder) == reachable, survivor)
    survivor.join(1)
    assert survivor.is_alive() and done(folder) == reachable  # waits for what is claimed
    victim.kill()
    victim.join()
    time_passes(folder)
    survivor.join()
    assert survivor.exitcode == 0
    assert_complete(case, "companions", undisturbed)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_it_in_good_order(case, undisturbed, number, code, num_workers):
    name = f"signal-{number}-{num_workers}"
    process = case.start(name, pause=0.05, num_workers=num_workers, **SETTINGS)
    folder = case.folder / name
    wait_until(lambda: done(folder) > 0, process)
    os.killpg(process.pid, number)  # the processes that read, too, as terminals do
    process.join(HANGS)
    assert process.exitcode == code
    n = done(folder)
    assert 0 < n < 10
    assert not list(folder.rglob("*.claim")) and not list(folder.rglob("*.tmp"))
    log = (case.folder / f"{name}.log").read_text()
    assert f"Stopped by {number.name}: {n} of 10 shards are done and stay" in log
    assert "Traceback" not in log
    case.generate(name, **SETTINGS)
    assert_complete(case, name, undisturbed)
