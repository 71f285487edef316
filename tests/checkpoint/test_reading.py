"""Checkpoint files are read without running what they contain, and refused in one sentence."""

import os
import pickle

import numpy as np
import pytest
import torch

from kd_d2.checkpoint import CheckpointError, local_weights_path, read_checkpoint
from kd_d2.model_zoo import download


class Malicious:
    """Unpickling this runs a command; if a test lets it, a file tells."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return (os.system, (f"touch '{self.witness}'",))


def dump(path, data, protocol=2):
    with open(path, "wb") as f:
        pickle.dump(data, f, protocol=protocol)
    return str(path)


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_a_malicious_pickle_does_not_run(tmp_path, ending):
    witness = tmp_path / "witness"
    path = tmp_path / f"evil.{ending}"
    data = {"model": {"w": np.zeros(1)}, "__author__": "x", "extra": Malicious(witness)}
    if ending == "pkl":
        dump(path, data)
    else:
        torch.save(data, path)
    with pytest.raises(CheckpointError, match="can run code") as error:
        read_checkpoint(str(path))
    assert "system" in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not witness.exists()


def test_codecs_that_transform_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            import _codecs

            return (_codecs.encode, ("x", "rot13"))

    with pytest.raises(CheckpointError):
        read_checkpoint(dump(tmp_path / "bomb.pkl", {"a": Bomb()}))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_detectron2_zoo_pickle(tmp_path, protocol):
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.bias": np.zeros(3, dtype=np.float64),
        "scalar": np.array(7, dtype=np.int64),
    }
    data = {"model": arrays, "__author__": "FAIR", "matching_heuristics": True}
    checkpoint = read_checkpoint(dump(tmp_path / "zoo.pkl", data, protocol))
    assert checkpoint["matching_heuristics"] is True
    assert checkpoint["model"]["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint["model"]["a.weight"].dtype == torch.float32
    assert checkpoint["model"]["scalar"].shape == ()
    assert checkpoint["model"]["scalar"].item() == 7


@pytest.mark.parametrize("nested", [True, False])
def test_caffe2_pickle(tmp_path, nested):
    blobs = {
        "conv1_w": np.ones((2, 2), np.float32),
        "conv1_w_momentum": np.ones((2, 2), np.float32),
    }
    path = dump(tmp_path / "c2.pkl", {"blobs": blobs} if nested else blobs)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint["model"]) == ["conv1_w"]
    assert checkpoint["__author__"] == "Caffe2" and checkpoint["matching_heuristics"]


def test_torch_file_with_numpy_scalars_of_a_stock_trainer(tmp_path):
    path = str(tmp_path / "m.pth")
    data = {"model": {"w": torch.ones(2)}, "metric": np.float64(0.5), "iteration": np.int64(3)}
    torch.save(data, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint["iteration"] == 3 and checkpoint["metric"] == 0.5


def test_bare_state_dict_and_pycls(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "bare.pth")
    assert list(read_checkpoint(str(tmp_path / "bare.pth"))["model"]) == ["w"]
    torch.save({"model_state": {"w": torch.ones(2)}}, tmp_path / "p.pyth")
    assert read_checkpoint(str(tmp_path / "p.pyth"))["matching_heuristics"]


def truncated(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def truncated_pickle(tmp_path):
    path = tmp_path / "cut.pkl"
    dump(path, {"model": {"w": np.ones(1000)}, "__author__": ""})
    path.write_bytes(path.read_bytes()[:2000])
    return path


def web_page(tmp_path):
    path = tmp_path / "page.pth"
    path.write_text("<html>404 Not Found</html>")
    return path


def changed_inside(tmp_path):
    path = tmp_path / "changed.pth"
    torch.save({"model": {"w": torch.ones(10_000)}}, path)
    data = bytearray(path.read_bytes())
    data[20_000:20_100] = bytes(100)
    path.write_bytes(data)
    return path


def empty(tmp_path):
    path = tmp_path / "empty.pth"
    path.touch()
    return path


@pytest.mark.parametrize(
    "make, words",
    [
        (truncated, "damaged or cut off"),
        (changed_inside, "damaged or cut off"),
        (truncated_pickle, "incomplete download"),
        (web_page, "not a checkpoint"),
        (empty, "is empty"),
    ],
)
def test_broken_files_are_named_with_a_remedy(tmp_path, make, words):
    path = str(make(tmp_path))
    with pytest.raises(CheckpointError, match=words) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert path in message and "fetch" in message and "\n" not in message


def test_things_that_are_no_detector_weights(tmp_path):
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    torch.save({"model": {"w": "text"}}, tmp_path / "text.pth")
    for name in ("tensor", "empty", "text"):
        with pytest.raises(CheckpointError):
            read_checkpoint(str(tmp_path / f"{name}.pth"))


@pytest.mark.parametrize(
    "model, words",
    [
        ({0: torch.ones(1)}, "entry '0' has no name"),
        ({"a": torch.ones(1), 3: torch.ones(1)}, "entry '3' has no name"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' is a tensor of torch.complex64"),
        ({"w": torch.eye(2).to_sparse()}, "'w' is a tensor .*torch.sparse_coo"),
        ({"w": torch.ones(2, device="meta")}, "'w' is a tensor without data"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_entries_that_are_no_weights(tmp_path, model, words):
    torch.save({"model": model}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "data, words",
    [
        ({0: np.ones(1)}, "entry '0' has no name"),
        ({"blobs": [1]}, "entry 'blobs' is not a dict"),
        ({"w": np.array(["text"])}, "'w' is an array of <U4"),
        ({"w": np.ones(2, np.longdouble)}, "'w' is an array of float128"),
    ],
)
def test_arrays_that_are_no_weights(tmp_path, data, words):
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(dump(tmp_path / "a.pkl", data))


def test_arrays_of_any_layout(tmp_path):
    swapped = np.arange(6, dtype=">f4").reshape(2, 3).T
    arrays = {"a": swapped, "b": np.array(3.0), "c": np.arange(4)[::-1]}
    for data in ({"model": arrays}, arrays):
        model = read_checkpoint(dump(tmp_path / "a.pkl", data))["model"]
        assert model["a"].tolist() == [[0, 3], [1, 4], [2, 5]] and model["a"].is_contiguous()
        assert model["b"].shape == () and model["c"].tolist() == [3, 2, 1, 0]


def test_missing_and_unreachable_files(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_D2_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "DEFAULT_PATIENCE", download.Patience(waits=(0,)))
    with pytest.raises(CheckpointError, match="/no/such.pth' not found"):
        local_weights_path("/no/such.pth")
    with pytest.raises(CheckpointError, match="could not be fetched"):
        local_weights_path("http://127.0.0.1:9/none.pth")
    with pytest.raises(CheckpointError, match="Weights 'kd_d2://coco/retinanet':.*did you mean"):
        local_weights_path("kd_d2://coco/retinanet")
    with pytest.raises(CheckpointError, match="not found|could not be fetched"):
        local_weights_path("nobody://knows/this.pth")
