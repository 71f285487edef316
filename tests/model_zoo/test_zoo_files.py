"""Addresses of weights become local files: by name, for our checkpointer and for stock ones."""

import hashlib
import io
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import Detectron2Handler, PathManager
from zoo_server import badly

from kd_d2.checkpoint import CheckpointError, KDCheckpointer, file_sha256, local_weights_path
from kd_d2.model_zoo import ZooError, add_file, cached_file, find, is_fetched_here, local_file

PATH = "/zoo/linear.pkl"


class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 1)


@pytest.fixture
def weights():
    """A file as Detectron2's model zoo has it, of a linear layer with the weights 1 and 2."""
    arrays = {"weight": np.array([[1.0, 2.0]], np.float32), "bias": np.zeros(1, np.float32)}
    return pickle.dumps({"model": arrays, "__author__": "test"}, protocol=2)


@pytest.fixture
def zoo(site, cache, weights, write_table):
    site.files[PATH] = weights
    fields = "kind: detector, config: null, licence: MIT, source: a test"
    digest = hashlib.sha256(weights).hexdigest()
    write_table(
        "entries:\n"
        f"  test/linear: {{{fields}, url: '{site.url(PATH)}', sha256: '{digest}'}}\n"
        f"  test/wrong: {{{fields}, url: '{site.url(PATH)}', sha256: '{'0' * 64}'}}\n"
        f"  test/page: {{{fields}, page: 'https://example.org/files', convert_from: lgd}}\n"
    )
    return site


@pytest.mark.parametrize("checkpointer", [KDCheckpointer, DetectionCheckpointer])
@pytest.mark.parametrize("by", ["name", "url"])
def test_checkpointers_load_a_name_and_a_url(zoo, cache, checkpointer, by):
    address = "kd_d2://test/linear" if by == "name" else zoo.url(PATH)
    if by == "url" and checkpointer is DetectionCheckpointer:
        local_weights_path(address)  # which tells the handlers of Detectron2 where it is
    model = Linear()
    checkpointer(model).load(address)
    assert model.weight.tolist() == [[1.0, 2.0]]
    assert len(zoo.seen) == 1, "our cache is used, not fetched into iopath's once more"
    assert file_sha256(address) == hashlib.sha256(zoo.files[PATH]).hexdigest()
    assert len(zoo.seen) == 1
    assert (cache / PATH[1:]).is_file()


def test_the_word_for_the_checkpointer_is_not_sent_to_the_server(zoo):
    local_weights_path(zoo.url(PATH) + "?matching_heuristics=True")
    local_weights_path("kd_d2://test/linear?matching_heuristics=True")
    assert [path for path, *_ in zoo.seen] == [PATH]


def test_other_queries_are_sent(zoo, weights):
    zoo.files[PATH + "?download=1"] = weights
    path = local_weights_path(zoo.url(PATH) + "?matching_heuristics=True&download=1#top")
    assert path.endswith(".pkl")
    assert [path for path, *_ in zoo.seen] == [PATH + "?download=1"]


def test_the_hash_of_the_table_is_checked(zoo, cache):
    with pytest.raises(CheckpointError, match="test/wrong.*SHA256 is 0000.*deleted"):
        local_weights_path("kd_d2://test/wrong")
    assert not (cache / PATH[1:]).exists()


def test_detectron2_addresses(zoo, monkeypatch, weights):
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", zoo.url("/detectron2/"))
    zoo.files["/detectron2/ImageNetPretrained/MSRA/R-50.pkl"] = weights
    zoo.plan = [badly(cut=20)]
    address = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    path = local_weights_path(address)
    assert PathManager.get_local_path(address) == path
    assert zoo.ranges == [None, "bytes=20-"]


def test_catalog_addresses(zoo, monkeypatch, weights):
    from detectron2.checkpoint.catalog import ModelCatalog

    monkeypatch.setattr(ModelCatalog, "S3_C2_DETECTRON_PREFIX", zoo.url("/c2"))
    zoo.files["/c2/ImageNetPretrained/MSRA/R-50.pkl"] = weights
    path = local_weights_path("catalog://ImageNetPretrained/MSRA/R-50")
    assert PathManager.get_local_path("catalog://ImageNetPretrained/MSRA/R-50") == path
    for name in ("ImageNetPretrained/MSRA/R-51", "nothing"):
        with pytest.raises(ZooError, match="not in Detectron2's catalog"):
            local_file("catalog://" + name)


def test_which_addresses_are_ours():
    for address in ("kd_d2://a", "detectron2://a", "catalog://a", "HTTPS://a", "ftp://a"):
        assert is_fetched_here(address)
    for address in ("a.pth", "/a", "s3://a", "https://1drv.ms/u/s!abc", ""):
        assert not is_fetched_here(address)
    with pytest.raises(CheckpointError, match="only http:// and https://"):
        local_weights_path("ftp://host/a.pth")


def test_a_name_without_an_address_says_where_to_look(zoo, cache, tmp_path, monkeypatch):
    entry = find("test/page")
    for offline in ("0", "1"):
        monkeypatch.setenv("KD_D2_OFFLINE", offline)
        with pytest.raises(CheckpointError, match="open https://example.org/files.*--gdrive-id ID"):
            local_weights_path(entry.address)
    assert cached_file(entry) is None
    file = tmp_path / "downloaded.pth"
    torch.save(Linear().state_dict(), file)
    path = add_file(entry, file)
    assert path == cache / "kd_d2" / "test" / "page.pth" == cached_file(entry)
    assert local_weights_path(entry.address) == str(path)
    assert PathManager.open(entry.address, "rb").read() == file.read_bytes()


def test_a_users_file_stands_for_an_address(zoo, tmp_path, weights, monkeypatch):
    entry = find("test/linear")
    file = tmp_path / "mine.pkl"
    file.write_bytes(b"\x80other")
    with pytest.raises(ZooError, match="'.*mine.pkl' is not the file whose SHA256.*left as it is"):
        add_file(entry, file)
    assert cached_file(entry) is None and file.read_bytes() == b"\x80other"
    file.write_bytes(weights)
    add_file(entry, file)
    monkeypatch.setenv("KD_D2_OFFLINE", "1")
    assert local_file(entry.address) == local_file(entry.url) == cached_file(entry)
    assert zoo.seen == []


def test_files_that_cannot_be_added(zoo, tmp_path):
    entry = find("test/page")
    page = tmp_path / "page.pth"
    page.write_text("<html>Quota exceeded")
    with pytest.raises(ZooError, match="a web page"):
        add_file(entry, page)
    with pytest.raises(ZooError, match="There is no file"):
        add_file(entry, tmp_path / "absent.pth")
    with pytest.raises(ZooError, match="is not the file whose SHA256"):
        add_file(entry, __file__, sha256="0" * 64)
    assert cached_file(entry) is None


@pytest.mark.parametrize("name", ["cut.pth", "cut.pkl"])
def test_a_cut_file_of_unknown_hash_is_not_added(zoo, tmp_path, weights, name):
    file = tmp_path / name
    buffer = io.BytesIO()
    torch.save(Linear().state_dict(), buffer)
    content = buffer.getvalue() if name.endswith(".pth") else weights
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ZooError, match=f"{name}' .*left as it is, and not added"):
        add_file(find("test/page"), file)
    assert cached_file(find("test/page")) is None and file.is_file()


class Schedule:
    """Something besides weights in a checkpoint."""


@pytest.mark.parametrize("name", ["trained.pth", "old.pth", "trained.pkl"])
def test_an_archive_with_objects_is_added(zoo, tmp_path, name):
    content = {"model": Linear().state_dict(), "scheduler": Schedule()}
    file = tmp_path / name
    if name.endswith(".pkl"):
        file.write_bytes(pickle.dumps(content | {"model": {}}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=name != "old.pth")
    assert add_file(find("test/page"), file).read_bytes() == file.read_bytes()


def test_our_handler_reads_only(zoo):
    with pytest.raises(ValueError, match="read only"):
        PathManager.open("kd_d2://test/linear", "wb")
    assert isinstance(PathManager.open("kd_d2://test/linear", "rb"), io.BufferedReader)


def test_nothing_is_unpickled_by_a_download(zoo, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    zoo.files["/evil.pkl"] = pickle.dumps(Evil())
    local_file(zoo.url("/evil.pkl"))
