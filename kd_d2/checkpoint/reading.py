"""Reading checkpoint files without running code that they may contain.

``.pth`` files go through ``torch.load(weights_only=True)``; the ``.pkl`` files of Detectron2's and
Caffe2's model zoos go through an unpickler that knows NumPy arrays and builtin containers and
nothing else. Every failure is one :class:`CheckpointError` that names the file and the remedy.
"""

import builtins
import codecs
import collections
import io
import os
import pickle
import zipfile
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from kd_d2.model_zoo import ZooError, is_fetched_here, local_file

__all__ = ["CheckpointError", "local_weights_path", "read_checkpoint"]


class CheckpointError(ValueError):
    """A weights file cannot be used; the message is one sentence with the file and the remedy."""


def local_weights_path(path: str) -> str:
    """Return the local file of ``path``, fetching what lies elsewhere.

    Args:
        path: a file; ``kd_d2://``, ``detectron2://``, ``catalog://``, ``https://`` or ``http://``,
            which :mod:`kd_d2.model_zoo` fetches and checks; or an address that a handler of
            Detectron2's ``PathManager`` knows.

    Raises:
        CheckpointError: the file does not exist or cannot be fetched.
    """
    if is_fetched_here(path):
        try:
            return str(local_file(path))
        except ZooError as error:
            raise CheckpointError(f"Weights '{path.partition('?')[0]}': {error}") from error
    remote = "://" in path
    try:
        local = PathManager.get_local_path(path.split("?", 1)[0] if remote else path)
    except Exception as error:
        # iopath, other handlers and the socket layer raise a dozen unrelated types here
        raise CheckpointError(
            f"Weights '{path}' could not be fetched ({_first_line(error)}): check the network, or "
            "download the file by other means and give its local path."
        ) from error
    if not os.path.isfile(local):
        raise CheckpointError(
            f"Weights '{path}' not found: put the file there or give another path "
            "(https://, detectron2:// and kd_d2:// work too)."
        )
    return local


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a local checkpoint file.

    Args:
        path: a local file; the ending decides: ``.pkl`` (Detectron2 zoo, Caffe2), ``.pyth``
            (pycls), anything else is what ``torch.save`` writes.

    Returns:
        A dict with ``"model"`` (name -> tensor or array) and what else the file holds;
        ``"matching_heuristics"`` where the names are those of another framework.

    Raises:
        CheckpointError: the file is cut, no checkpoint, or holds more than weights.
    """
    if path.endswith(".pkl"):
        return _zoo_layout(path, _read_pickle(path))
    data = _read_torch(path)
    if not isinstance(data, dict):
        raise CheckpointError(
            f"'{path}' holds a {type(data).__name__}, not a state dict: save "
            "{'model': model.state_dict()} instead."
        )
    if path.endswith(".pyth"):
        if "model_state" not in data:
            raise CheckpointError(f"'{path}' is no pycls checkpoint: it has no 'model_state'.")
        return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
    if "model" not in data:
        data = {"model": data}
    return _with_weights(path, data)


def _zoo_layout(path: str, data: Any) -> dict[str, Any]:
    """Give the contents of a zoo ``.pkl`` the layout of a Detectron2 checkpoint."""
    if not isinstance(data, dict):
        raise CheckpointError(f"'{path}' holds a {type(data).__name__}, not a dict of arrays.")
    if isinstance(data.get("model"), dict):
        return _with_weights(path, data)
    # Caffe2: detection models keep their arrays under "blobs", ImageNet models on the top level
    blobs = data.get("blobs", data)
    if not isinstance(blobs, dict):
        raise CheckpointError(f"'{path}' is no checkpoint: its entry 'blobs' is not a dict.")
    weights = {k: v for k, v in blobs.items() if not str(k).endswith("_momentum")}
    return _with_weights(
        path, {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    )


def _with_weights(path: str, data: dict[str, Any]) -> dict[str, Any]:
    """Turn arrays into tensors, in place of ``data['model']``, and refuse anything else."""
    model = data["model"]
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"'{path}' holds no weights: its 'model' entry is not a state dict.")
    for name, value in model.items():
        problem = "has no name" if not isinstance(name, str) else _unusable(value)
        if problem:
            raise CheckpointError(
                f"'{path}' is no checkpoint of a detector: its entry '{name}' {problem}."
            )
        if isinstance(value, np.ndarray):
            native = value.dtype.newbyteorder("=")
            model[name] = torch.from_numpy(np.array(value, native, order="C"))
    return data


def _unusable(value: Any) -> str:
    """Why a value cannot be a weight; "" if it can."""
    if isinstance(value, np.ndarray):
        # torch knows neither strings and objects, nor all unsigned and extended numbers
        fine = value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
        return "" if fine else f"is an array of {value.dtype}"
    if not isinstance(value, torch.Tensor):
        return f"is a {type(value).__name__} instead of a tensor"
    if value.is_meta or value.layout != torch.strided or value.is_complex():
        kind = "without data" if value.is_meta else f"of {value.dtype}, {value.layout}"
        return f"is a tensor {kind}, and a weight is a dense one of real numbers"
    return ""


# ------------------------------------------------------------------------------------ .pth


# what readers make of a file that is cut off or changed
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, OSError)


def _read_torch(path: str) -> Any:
    # torch does not look at the checksums
    if _is_zip(path) and not _checksums_are_right(path):
        raise CheckpointError(_not_a_checkpoint(path))
    try:
        with torch.serialization.safe_globals(_numpy_names()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_zip(path):
            raise CheckpointError(
                f"'{path}' holds Python objects besides tensors, which kd_d2 does not unpickle "
                f"because that can run code ({_unsupported_global(error)}): if you trust the file, "
                "load it with Detectron2 and save {'model': model.state_dict()} anew."
            ) from error
        raise CheckpointError(_not_a_checkpoint(path)) from error
    except _DAMAGE as error:
        raise CheckpointError(_not_a_checkpoint(path)) from error


def _numpy_names() -> list:
    """What torch needs to know to read NumPy arrays and the numbers that stock trainers save."""
    scalar_types = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    dtypes = {type(np.dtype(t)) for t in scalar_types}
    multiarray = _numpy_core().multiarray
    functions = [multiarray.scalar, multiarray._reconstruct, codecs.encode]
    return [*functions, np.ndarray, np.dtype, *dtypes]


def _numpy_core():
    """NumPy's inner package, which NumPy 2 renamed."""
    return getattr(np, "_core", None) or np.core


def _checksums_are_right(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, *_DAMAGE):
        return False


def _is_zip(path: str) -> bool:
    with open(path, "rb") as f:
        return f.read(4) == b"PK\x03\x04"


def _not_a_checkpoint(path: str) -> str:
    size = os.path.getsize(path)
    if size == 0:
        return f"'{path}' is empty: delete it and fetch or save it again."
    if _is_zip(path):
        return (
            f"'{path}' ({size:,} bytes) is damaged or cut off: delete it and fetch it again, or "
            "use an earlier checkpoint."
        )
    return (
        f"'{path}' ({size:,} bytes) is not a checkpoint: it may be an incomplete download or an "
        "error page saved under this name; delete it and fetch it again."
    )


def _unsupported_global(error: Exception) -> str:
    text = str(error)
    if "GLOBAL " in text:
        return "it names " + text.split("GLOBAL ", 1)[1].split()[0]
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ------------------------------------------------------------------------------------ .pkl


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """``codecs.encode`` as pickles of old arrays use it, without the codecs that transform."""
    if encoding.replace("-", "").lower() not in ("latin1", "ascii", "utf8"):
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode(encoding)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and builtin containers; any other name in the stream is refused."""

    _NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
    _CONTAINERS = ("dict", "list", "set", "frozenset", "tuple", "bytearray", "complex")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._NUMPY_MODULES and name in ("_reconstruct", "scalar"):
            return getattr(_numpy_core().multiarray, name)
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _numpy_core().numeric._frombuffer
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "collections" and name == "OrderedDict":
            return collections.OrderedDict
        if module == "_codecs" and name == "encode":
            return _encode
        if module in ("builtins", "__builtin__") and name in self._CONTAINERS:
            return getattr(builtins, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as f:
        stream = io.BytesIO(f.read())
    try:
        return _ArrayUnpickler(stream, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        name = _first_line(error)
        if "." in name and " " not in name:
            raise CheckpointError(
                f"'{path}' was not read because it asks Python for '{name}', while weights need "
                "NumPy arrays only: such a file can run code; fetch it from a source you trust."
            ) from error
        raise CheckpointError(_not_a_checkpoint(path)) from error
    except Exception as error:
        # a damaged pickle stream fails in whatever its garbage happens to mean
        raise CheckpointError(_not_a_checkpoint(path)) from error
