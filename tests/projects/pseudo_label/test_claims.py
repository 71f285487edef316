"""Claims: one worker at a time, whose death is noticed."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kd_d2.projects.pseudo_label.claims import Claims


@pytest.fixture
def claims(tmp_path):
    with Claims(tmp_path) as claims:
        yield claims


def foreign(folder, name="a", age=0.0, **owner):
    """A claim of another process."""
    path = folder / f"{name}.claim"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "5"} | owner))
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
    return path


def own_host(tmp_path):
    """How this machine is called in claims."""
    with Claims(tmp_path / "probe") as probe:
        probe.claim("x")
        return json.loads((tmp_path / "probe" / "x.claim").read_text())["host"]


def test_one_holds_it_until_it_is_released(tmp_path, claims):
    with Claims(tmp_path) as other:
        assert claims.claim("a") and not other.claim("a") and not claims.claim("a")
        assert other.claim("b")
        content = json.loads((tmp_path / "a.claim").read_text())
        assert content["pid"] == os.getpid() and content.keys() == {"host", "pid", "start"}
        claims.release("a")
        assert other.claim("a")
    assert not list(tmp_path.glob("*.claim"))  # left, so released


def test_age_decides_about_other_machines(tmp_path, claims):
    foreign(tmp_path, "old", age=601)
    foreign(tmp_path, "young", age=590)
    assert claims.claim("old") and not claims.claim("young")
    assert json.loads((tmp_path / "old.claim").read_text())["pid"] == os.getpid()
    with Claims(tmp_path, heartbeat=10, stale=500) as impatient:
        assert impatient.claim("young")


def test_no_clock_but_the_folders_counts(tmp_path, claims, monkeypatch):
    foreign(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not claims.claim("a")
    # a file server whose clock is far ahead
    monkeypatch.setattr(Claims, "_now", lambda self: (tmp_path / "a.claim").stat().st_mtime + 601)
    assert claims.claim("a")


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path, claims):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    foreign(tmp_path, host=own_host(tmp_path), pid=process.pid)
    assert claims.living() == []
    assert claims.claim("a")


def test_a_living_process_of_this_machine_holds_it(tmp_path, claims):
    code = (
        "import sys; from kd_d2.projects.pseudo_label.claims import Claims\n"
        "with Claims(sys.argv[1]) as c: print(c.claim('a'), flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "True\n"
    assert not claims.claim("a")
    assert claims.living() == [f"process {process.pid} on {os.uname().nodename}"]
    process.kill()
    deadline = time.monotonic() + 20
    while not claims.claim("a"):  # as soon as it has ended, though nobody has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert claims.living() == []


def test_a_number_that_another_process_has_by_now(tmp_path, claims):
    foreign(tmp_path, host=own_host(tmp_path), pid=os.getpid(), start="1")
    assert claims.claim("a")


def test_systems_that_do_not_tell_when_a_process_began(tmp_path, claims):
    foreign(tmp_path, host=own_host(tmp_path), pid=2**22 + 1, start=None)
    assert not claims.claim("a")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_claim_that_was_cut_off_is_judged_by_its_age(tmp_path, claims, content):
    path = tmp_path / "a.claim"
    path.write_text(content)
    assert not claims.claim("a")
    os.utime(path, (1, 1))
    assert claims.claim("a")


def test_held_claims_are_touched(tmp_path):
    with Claims(tmp_path, heartbeat=0.05, stale=600) as claims:
        claims.claim("a")
        claims.claim("gone")
        (tmp_path / "gone.claim").unlink()
        path = tmp_path / "a.claim"
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 1e9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not (tmp_path / "gone.claim").exists()


def test_what_was_stolen_is_not_released(tmp_path, claims):
    claims.claim("a")
    path = foreign(tmp_path)
    claims.release("a")
    assert path.exists()
    path.unlink()
    claims.claim("b")
    (tmp_path / "b.claim").unlink()
    claims.release("b")


def test_all_are_cleared(tmp_path, claims):
    claims.claim("a")
    foreign(tmp_path, "b")
    assert not claims.claim("b")
    (tmp_path / "a.npz").touch()
    claims.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_nobody_sees_half_a_claim(tmp_path, claims, monkeypatch):
    """It has its owner from the first moment on."""
    seen = []
    link = os.link

    def linked(new, path):
        seen.append((Path(path).exists(), json.loads(Path(new).read_text())["pid"]))
        link(new, path)

    monkeypatch.setattr(os, "link", linked)
    assert claims.claim("a")
    assert seen == [(False, os.getpid())]
    assert not [*tmp_path.glob(".*.new")]


def test_file_systems_without_hard_links(tmp_path, claims, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Claims(tmp_path) as other:
        assert claims.claim("a") and not other.claim("a")
    assert json.loads((tmp_path / "a.claim").read_text())["pid"] == os.getpid()
    assert not [*tmp_path.glob(".*.new")]


def test_of_many_at_once_one_gets_each(tmp_path):
    names, got = [str(i) for i in range(40)], []
    start = threading.Barrier(8)

    def work():
        with Claims(tmp_path) as claims:
            start.wait()
            got.extend(name for name in names if claims.claim(name))
            start.wait()  # none is released before all have tried

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(got) == sorted(names)
