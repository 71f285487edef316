"""The cache: where files lie, that they are whole or absent, and who fetches them."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import portalocker
import pytest
from zoo_server import DATA, OTHER, PATH, badly, leftovers, stall

from kd_d2.model_zoo import ZooError, download, transfer
from kd_d2.model_zoo.cache import cache_path, read_note
from kd_d2.model_zoo.download import Patience, fetch


def test_a_file_is_fetched_once_into_the_place_that_iopath_would_use(site, file):
    for _ in range(2):
        assert fetch(site.url(PATH)) == file
    assert file.read_bytes() == DATA
    assert len(site.seen) == 1
    assert leftovers(file) == []


def test_what_iopath_fetched_is_found(site, monkeypatch, tmp_path):
    from iopath.common.file_io import HTTPURLHandler

    monkeypatch.delenv("KD_D2_CACHE", raising=False)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site.files[PATH] = DATA
    theirs = HTTPURLHandler()._get_local_path(site.url(PATH))
    assert len(site.seen) == 1
    assert str(fetch(site.url(PATH))) == theirs
    assert len(site.seen) == 1


def test_two_hosts_with_the_same_path_do_not_share_a_file(site, file, monkeypatch):
    fetch(site.url(PATH))
    site.files[PATH] = OTHER
    second = site.url(PATH).replace("127.0.0.1", "localhost")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert cache_path(second) != file
    assert fetch(second).read_bytes() == OTHER
    assert fetch(second).read_bytes() == OTHER
    assert fetch(site.url(PATH)).read_bytes() == DATA
    assert len(site.seen) == 2


def test_queries_are_part_of_the_file_and_stay_out_of_messages(site, cache):
    site.files["/get.pkl?id=1&token=secret"] = DATA
    site.files["/get.pkl?id=2"] = OTHER
    first, second = (fetch(site.url(path)) for path in site.files)
    assert first.read_bytes() == DATA and second.read_bytes() == OTHER
    assert first.suffix == ".pkl"
    with pytest.raises(ZooError) as told:
        fetch(site.url("/gone.pkl?token=secret"))
    assert "secret" not in str(told.value)


def test_offline_only_the_cache_is_used(site, file, monkeypatch):
    fetch(site.url(PATH))
    site.seen.clear()
    monkeypatch.setenv("KD_D2_OFFLINE", "1")
    assert fetch(site.url(PATH)).read_bytes() == DATA
    absent = site.url("/models/absent.pkl")
    with pytest.raises(ZooError, match="KD_D2_OFFLINE is set") as told:
        fetch(absent)
    place = file.parents[1] / "absent.pkl"
    assert absent in str(told.value) and str(place) in str(told.value)
    assert site.seen == []
    place.write_bytes(OTHER)  # as the message says
    assert fetch(absent).read_bytes() == OTHER


def test_threads_that_ask_at_once_fetch_once(site, file):
    site.always = badly(pause=0.002)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [site.url(PATH)] * 4))
    assert paths == [file] * 4
    assert file.read_bytes() == DATA
    assert len(site.seen) == 1


def in_processes(count, url):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch, args=(url,)) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def test_processes_that_ask_at_once_fetch_once(site, file):
    site.always = badly(pause=0.005)
    processes = in_processes(2, site.url(PATH))
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert file.read_bytes() == DATA
    assert len(site.seen) == 1


def test_a_killed_download_is_resumed_by_the_next(site, file):
    release = threading.Event()
    site.plan = [stall(20_000, release)]
    part = file.with_name(file.name + ".part")
    (process,) = in_processes(1, site.url(PATH))
    deadline = time.monotonic() + 10
    while not (part.exists() and part.stat().st_size == 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not file.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    fetch(site.url(PATH))  # its lock is gone with it
    release.set()
    assert site.ranges == [None, "bytes=20000-"]
    assert file.read_bytes() == DATA
    assert leftovers(file) == []


def test_a_download_killed_before_its_end_needs_no_further_bytes(site, file, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(site.url(PATH))
    assert not file.exists()
    fetch(site.url(PATH))
    assert site.ranges == [None, "bytes=50000-"]
    assert file.read_bytes() == DATA


def test_the_name_comes_last(site, file, monkeypatch):
    """Written, synced, renamed: at no time is there a file of that name that is not whole."""
    events = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (events.append("sync"), fsync(f)))

    def rename(source, target):
        if target == file:
            assert source.read_bytes() == DATA and not file.exists()
            events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    fetch(site.url(PATH))
    assert events == ["sync", "rename"]
    assert read_note(file, "origin") == {"source": site.url(PATH)}


def test_a_holder_that_is_stuck_is_named(site, file):
    file.parent.mkdir(parents=True)
    with open(file.with_name(file.name + ".lock"), "w") as lock:
        lock.write("process 7 on node3")
        lock.flush()
        portalocker.lock(lock, portalocker.LOCK_EX)
        with pytest.raises(ZooError, match="process 7 on node3 holds.*end that process"):
            fetch(site.url(PATH), patience=Patience(stale_after=0.3))
    assert site.seen == []


def test_a_file_system_without_locks(site, file, monkeypatch, caplog):
    def unsupported(*args):
        raise portalocker.LockException(OSError(38, "Function not implemented"))

    monkeypatch.setattr(portalocker, "lock", unsupported)
    assert fetch(site.url(PATH)).read_bytes() == DATA
    assert "cannot be locked" in caplog.text
    assert leftovers(file) == []


def test_a_cache_that_cannot_be_written_to(site, cache):
    site.files[PATH] = DATA
    cache.write_text("a file where the folder should be")
    with pytest.raises(ZooError, match="could not be stored.*KD_D2_CACHE"):
        fetch(site.url(PATH))


def test_a_full_disk_is_not_the_network(site, file, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "write_note", full)
    with pytest.raises(ZooError, match="No space left on device.*KD_D2_CACHE"):
        fetch(site.url(PATH))
    assert len(site.seen) == 1
