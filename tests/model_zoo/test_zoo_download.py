"""Downloads over a bad network, from servers that err and lie: a whole and right file or none.

Measured with test_zoo_cache.py: 4 s on one CPU core.
"""

import logging
import threading

import pytest
from zoo_server import DATA, OTHER, PATH, badly, error, leftovers, redirect, serve, sha256, stall

from kd_d2.model_zoo import ZooError, download, transfer
from kd_d2.model_zoo.download import Patience, fetch


def test_cut_connections_are_resumed(site, file):
    site.plan = [badly(cut=20_000), badly(cut=10_000)]
    fetch(site.url(PATH))
    assert file.read_bytes() == DATA
    assert site.ranges == [None, "bytes=20000-", "bytes=30000-"]


def test_progress_renews_the_patience(site, file):
    site.always = badly(cut=5_000)  # ten requests, and patience for three in vain
    fetch(site.url(PATH))
    assert len(site.seen) == 10
    assert file.read_bytes() == DATA


def test_a_server_that_never_sends_it_all_is_given_up(site, file):
    site.always = badly(cut=20_000, ignore_range=True)
    with pytest.raises(ZooError, match="20,000 of 50,000 bytes.*4 attempts.*next attempt goes on"):
        fetch(site.url(PATH))
    assert not file.exists()
    assert len(site.seen) == 4
    site.always = None
    site.seen.clear()
    fetch(site.url(PATH))
    assert site.ranges == ["bytes=20000-"]
    assert file.read_bytes() == DATA


def test_a_server_without_ranges_begins_anew(site, file):
    site.plan = [badly(cut=30_000), badly(ignore_range=True)]
    fetch(site.url(PATH), sha256(DATA))
    assert file.read_bytes() == DATA
    assert site.ranges == [None, "bytes=30000-"]


def test_a_wrong_range_is_not_glued_on(site, file):
    def wrong(request):
        request.send_response(206)
        request.send_header("Content-Range", "bytes 10-49999/50000")
        request.end_headers()
        request.wfile.write(DATA[10:])

    site.plan = [badly(cut=30_000), wrong]
    fetch(site.url(PATH))
    assert file.read_bytes() == DATA
    assert site.ranges == [None, "bytes=30000-", None]


@pytest.mark.parametrize("versions", [("ETag",), ("Last-Modified",), ("ETag", "Last-Modified")])
def test_a_file_that_changes_meanwhile_is_fetched_from_its_start(site, file, versions):
    def change(request):
        site.files[PATH] = OTHER
        serve(request)

    site.versions = versions
    site.plan = [badly(cut=30_000), change]
    fetch(site.url(PATH))
    assert file.read_bytes() == OTHER
    assert site.seen[1][1] == "bytes=30000-" and site.seen[1][2]


def test_a_change_that_a_server_hides_is_noticed_by_its_version(site, file):
    """Some ignore If-Range, and answer 206 with the new file's bytes."""

    def change(request):
        site.files[PATH] = OTHER[: len(DATA)]
        del request.headers["If-Range"]
        serve(request)

    site.plan = [badly(cut=30_000), change]
    fetch(site.url(PATH))
    assert file.read_bytes() == OTHER[: len(DATA)]
    assert site.ranges == [None, "bytes=30000-", None]


@pytest.mark.parametrize("digest, second", [(None, None), (sha256(DATA), "bytes=30000-")])
def test_without_versions_only_a_known_hash_allows_to_resume(site, file, digest, second):
    site.versions = ()
    site.plan = [badly(cut=30_000)]
    fetch(site.url(PATH), digest)
    assert site.ranges == [None, second]
    assert file.read_bytes() == DATA


def test_a_mixed_file_is_fetched_once_more_from_its_start(site, file):
    def change(request):
        site.files[PATH] = DATA
        serve(request)

    site.versions = ()
    site.files[PATH] = OTHER[: len(DATA)]
    site.plan = [badly(cut=30_000), change]
    fetch(site.url(PATH), sha256(DATA))
    assert site.ranges == [None, "bytes=30000-", None]
    assert file.read_bytes() == DATA


def test_other_bytes_than_the_hash_says_are_not_kept(site, file):
    with pytest.raises(ZooError, match=f"SHA256 is {sha256(OTHER)}.*SHA256 is {sha256(DATA)}"):
        fetch(site.url(PATH), sha256(OTHER))
    assert not file.exists()
    assert leftovers(file) == []
    assert len(site.seen) == 1


def test_a_cached_file_with_another_hash_is_refused_and_kept(site, file):
    fetch(site.url(PATH))
    with pytest.raises(ZooError, match="is not the file.*delete it"):
        fetch(site.url(PATH), sha256(OTHER))
    assert file.read_bytes() == DATA
    assert fetch(site.url(PATH), sha256(DATA)) == file


def test_a_length_that_is_too_long(site, file):
    site.always = badly(claim=1000)
    with pytest.raises(ZooError, match="could not be fetched"):
        fetch(site.url(PATH))
    assert not file.exists()


def test_a_length_that_is_too_short_is_found_by_the_hash(site, file):
    site.always = badly(claim=-1000)
    with pytest.raises(ZooError, match="damaged or changed"):
        fetch(site.url(PATH), sha256(DATA))
    assert not file.exists() and leftovers(file) == []


def test_an_empty_answer_is_no_file(site, file):
    site.files[PATH] = b""
    with pytest.raises(ZooError, match="the answer is empty"):
        fetch(site.url(PATH))
    assert not file.exists()


@pytest.mark.parametrize("code", [500, 502, 503, 429, 408])
def test_errors_that_pass(site, file, code):
    site.plan = [error(code), error(code)]
    fetch(site.url(PATH))
    assert file.read_bytes() == DATA
    assert len(site.seen) == 3


def test_errors_that_stay(site, file):
    site.always = error(503)
    with pytest.raises(
        ZooError, match="HTTP 503 Service Unavailable; 4 attempts.*put it at"
    ) as told:
        fetch(site.url(PATH))
    assert str(file) in str(told.value) and "\n" not in str(told.value)
    assert len(site.seen) == 4
    assert not file.exists() and leftovers(file) == []


@pytest.mark.parametrize("code, words", [(404, "check the address"), (403, "not public")])
def test_errors_that_no_retry_mends(site, file, code, words):
    site.always = error(code)
    with pytest.raises(ZooError, match=f"HTTP {code} .*{words}"):
        fetch(site.url(PATH))
    assert len(site.seen) == 1


@pytest.mark.parametrize(
    "body, kind",
    [
        (b"<!DOCTYPE html><p>Sign in", None),
        (b"\n <html><p>Quota exceeded", "application/octet-stream"),
        (b"anything", "text/html; charset=utf-8"),
        (b"<?xml version='1.0'?><Error>", "application/xml"),
        (b"version https://git-lfs.github.com/spec/v1\noid", None),
    ],
)
def test_a_page_is_no_checkpoint(site, file, body, kind):
    site.files[PATH] = body
    site.always = badly(kind=kind)
    with pytest.raises(ZooError, match="and no weights|not the file"):
        fetch(site.url(PATH))
    assert not file.exists() and leftovers(file) == []
    assert len(site.seen) == 1


def test_weights_that_a_server_calls_a_page_are_weights(site, file):
    site.always = badly(kind="text/html")
    assert fetch(site.url(PATH)).read_bytes() == DATA


def test_a_page_in_between_leaves_what_has_arrived(site, file):
    """The network's sign-in page comes instead of the rest."""
    site.plan = [badly(cut=30_000), error(200, b"<html>Sign in")]
    with pytest.raises(ZooError, match="a web page"):
        fetch(site.url(PATH))
    site.seen.clear()
    fetch(site.url(PATH))
    assert site.ranges == ["bytes=30000-"]
    assert file.read_bytes() == DATA


def test_compressed_answers_are_refused(site, file):
    site.always = badly(headers=[("Content-Encoding", "gzip")])
    with pytest.raises(ZooError, match="compressed"):
        fetch(site.url(PATH))


def test_a_silent_server_is_asked_again(site, file):
    release = threading.Event()
    site.plan = [stall(10_000, release)]
    fetch(site.url(PATH), patience=Patience(waits=(0,), timeout=0.2))
    release.set()
    assert site.ranges == [None, "bytes=10000-"]
    assert file.read_bytes() == DATA


def test_the_waits_between_requests(site, file, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    site.plan = [error(500), error(500), badly(cut=10_000), error(500)]
    fetch(site.url(PATH), patience=Patience(waits=(1, 2, 4)))
    assert waits == [1, 2, 1, 2]


def test_a_slow_download_tells_how_far_it_is(site, file, caplog):
    site.always = badly(pause=0.005)
    with caplog.at_level(logging.INFO, "kd_d2"):
        fetch(site.url(PATH), patience=Patience(report_every=0.05))
    lines = [m for m in caplog.messages if m.startswith("model.pkl: ")]
    assert 1 < len(lines) < 20
    assert "of 0.0 MiB (" in lines[0] and "MiB/s" in lines[0]


def test_a_bar_in_a_terminal(site, file, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    site.plan = [badly(cut=20_000)]
    fetch(site.url(PATH))
    assert "model.pkl: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_other_schemes_are_refused(site, file, target):
    site.plan = [redirect(target)]
    with pytest.raises(ZooError, match="only http:// and https://|no http:// or https://"):
        fetch(site.url(PATH))
    assert not file.exists()


def test_redirects_on_the_web_are_followed_with_their_range(site, file):
    site.plan = [
        redirect(site.url(PATH)),
        badly(cut=20_000),
        redirect(site.url(PATH)),
    ]
    fetch(site.url("/elsewhere/model.pkl"))
    assert site.ranges == [None, None, "bytes=20000-", "bytes=20000-"]
    assert (file.parents[2] / "elsewhere" / "model.pkl").read_bytes() == DATA


def test_https_does_not_become_http():
    import urllib.request

    request = urllib.request.Request("https://host/a?token=1")
    with pytest.raises(ZooError, match="could change") as told:
        transfer._Redirects().redirect_request(request, None, 302, "", {}, "http://host/b")
    assert "token" not in str(told.value)


@pytest.mark.parametrize("url", ["ftp://host/m.pkl", "file:///etc/passwd", "javascript:x"])
def test_other_schemes_are_refused(cache, url):
    with pytest.raises(ZooError, match="only http:// and https://"):
        fetch(url)


def test_addresses_that_are_none(cache):
    for url, words in [
        ("https://host/", "names no file"),
        ("https://host/a/../../../b.pkl", "leads out"),
        ("https://host/a b.pkl", "%XX"),
        ("http://host:x/b.pkl", "no valid address"),
        ("http://[::1/b.pkl", r"'http://\[::1/b.pkl' is no valid address"),
    ]:
        with pytest.raises(ZooError, match=words):
            fetch(url)


def test_http_without_a_hash_is_warned_about(site, file, caplog):
    fetch(site.url(PATH), sha256(DATA))
    assert "anybody" not in caplog.text
    file.unlink()
    fetch(site.url(PATH))
    assert "anybody on the way could change it" in caplog.text
