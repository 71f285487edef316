"""Files of Google Drive: what gdown is asked for, and what becomes of its answer."""

import hashlib
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd_d2.model_zoo import ZooError, find, get_file, local_file
from kd_d2.model_zoo.gdrive import drive_id

NAME = "lgd/retinanet_r50"
ID = "1AbC_dEf-0123456789"
DATA = b"PK\x03\x04 weights"


@pytest.fixture
def gdown(monkeypatch):
    """Stands for gdown, and for the requests that it brings along."""
    gdown = SimpleNamespace(DownloadError=type("DownloadError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    requests = SimpleNamespace(RequestException=type("RequestException", (OSError,), {}))
    monkeypatch.setitem(sys.modules, "requests", requests)
    return gdown


@pytest.fixture
def asked(gdown, cache):
    """What gdown was asked for; its files are DATA."""
    asked = []

    def download(**arguments):
        asked.append(arguments)
        arguments["progress"](5, None)
        arguments["progress"](len(DATA), len(DATA))
        Path(arguments["output"]).write_bytes(DATA)
        return arguments["output"]

    gdown.download = download
    return asked


def test_the_installed_gdown_understands_us(asked):
    get_file(find(NAME), gdrive=ID)
    sys.modules.pop("gdown")
    sys.modules.pop("requests")
    gdown = pytest.importorskip("gdown", minversion="6.5")
    inspect.signature(gdown.download).bind(**asked[0])
    assert issubclass(gdown.FileURLRetrievalError, gdown.DownloadError)


def test_a_file_is_fetched_under_its_name(asked, cache):
    path = get_file(find(NAME), gdrive=ID)
    assert path == cache / "kd_d2" / "lgd" / "retinanet_r50.pth"
    assert path.read_bytes() == DATA
    assert asked[0]["id"] == ID and asked[0]["resume"] and asked[0]["timeout"] > 0
    assert [p.name for p in path.parent.iterdir() if "part" in p.name] == []
    # from then on the name works
    assert local_file(f"kd_d2://{NAME}") == path
    assert get_file(find(NAME), gdrive=ID) == path
    assert len(asked) == 1


def test_its_hash_is_checked(asked, cache):
    with pytest.raises(ZooError, match="is not the file whose SHA256 is 0000"):
        get_file(find(NAME), "0" * 64, ID)
    assert not list(cache.rglob("*.pth"))
    assert get_file(find(NAME), hashlib.sha256(DATA).hexdigest(), ID).is_file()
    with pytest.raises(ZooError, match="delete it"):
        get_file(find(NAME), "0" * 64)


def test_a_page_instead_of_the_file(gdown, cache):
    def page(**arguments):
        Path(arguments["output"]).write_bytes(b"<!DOCTYPE html>Quota exceeded")

    gdown.download = page
    with pytest.raises(ZooError, match="is a web page"):
        get_file(find(NAME), gdrive=ID)
    assert not list(cache.rglob("*.pth"))


@pytest.mark.parametrize("kind", ["DownloadError", "RequestException"])
def test_what_gdown_cannot_fetch(gdown, cache, kind):
    def refuse(**arguments):
        where = gdown if kind == "DownloadError" else sys.modules["requests"]
        raise getattr(where, kind)("Cannot retrieve\nthe public link.")

    gdown.download = refuse
    with pytest.raises(ZooError, match="retrieve the public link.*model_zoo.py add") as told:
        get_file(find(NAME), gdrive=ID)
    assert "\n" not in str(told.value)


def test_without_gdown(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ZooError, match="pip install 'gdown.*model_zoo.py add"):
        get_file(find(NAME), gdrive=ID)


def test_offline(asked, monkeypatch):
    monkeypatch.setenv("KD_D2_OFFLINE", "1")
    with pytest.raises(ZooError, match="KD_D2_OFFLINE is set"):
        get_file(find(NAME), gdrive=ID)
    assert asked == []


def test_a_file_that_lives_elsewhere(asked):
    with pytest.raises(ZooError, match="and not in Google Drive"):
        get_file(find("imagenet/swin_t"), gdrive=ID)


@pytest.mark.parametrize(
    "text",
    [
        ID,
        f"https://drive.google.com/file/d/{ID}/view?usp=sharing",
        f"https://drive.google.com/open?id={ID}",
        f"https://drive.google.com/uc?export=download&id={ID}",
    ],
)
def test_ids_and_links(text):
    assert drive_id(text) == ID


@pytest.mark.parametrize("text", ["", "short", "https://example.org/file/d/" + ID, "../../etc/pw"])
def test_what_is_no_id(text):
    with pytest.raises(ZooError, match="no id of a file"):
        drive_id(text)
