"""A local server, a cache of its own, and little patience."""

import pytest
import zoo_server

from kd_d2.model_zoo import download, table


@pytest.fixture
def site():
    site, server = zoo_server.start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and retries without waiting."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KD_D2_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("KD_D2_OFFLINE", raising=False)
    patience = download.Patience(waits=(0, 0, 0), timeout=5, stale_after=20)
    monkeypatch.setattr(download, "DEFAULT_PATIENCE", patience)
    return folder


@pytest.fixture
def file(site, cache):
    """The place of the file that the site has, before anything is fetched."""
    site.files[zoo_server.PATH] = zoo_server.DATA
    return cache / zoo_server.PATH[1:]


@pytest.fixture
def write_table(tmp_path, monkeypatch):
    """Replaces the table by one that the test writes."""

    def write(text):
        path = tmp_path / "zoo.yaml"
        path.write_text(text)
        monkeypatch.setattr(table, "_TABLE", path)
        table.entries.cache_clear()

    yield write
    monkeypatch.undo()
    table.entries.cache_clear()
