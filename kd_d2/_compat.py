"""What has to be in order before Detectron2 can be imported."""

import importlib
import importlib.resources
import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec

_HOW_TO_INSTALL = (
    "install it with "
    "`pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git"
    "@02b5c4e295e990042a714712c21dc79b731e8833'` (builds its C++ operators: wants a compiler) "
    "or, in a checkout of kd_d2, with `DETECTRON2_SOURCE=pypi python tools/install_detectron2.py` "
    "(a copy in pure Python)."
)


def require_detectron2() -> None:
    """Raises ImportError with the way out if Detectron2 is missing or broken.

    For ``python -m kd_d2.<command>`` the sentence ends the program without a traceback.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:  # no origin: just a folder of that name
        _refuse(f"kd_d2 needs Detectron2, which is not installed: {_HOW_TO_INSTALL}", None)
    try:
        importlib.import_module("detectron2")
    except ImportError as error:
        message = f"Detectron2 is at {spec.origin} but cannot be imported ({error}): "
        _refuse(message + "repair what is named there, or " + _HOW_TO_INSTALL, error)


def _refuse(message: str, cause: ImportError | None) -> None:
    if sys.argv[:1] == ["-m"]:  # what Python puts there while it imports the package for `-m`
        raise SystemExit(message)
    raise ImportError(message) from cause


def ensure_pkg_resources() -> None:
    """Imports ``detectron2.model_zoo``, whatever setuptools is installed.

    It imports ``pkg_resources``, which setuptools 81 no longer has, for one function that finds
    a packaged file; a stand-in gives it that function. The stand-in is taken away afterwards:
    packages that try ``import pkg_resources`` and have an alternative must still take it.

    The import is made here and now also because it is noisy: warnings that setuptools and torch
    address to the authors of Detectron2 and fvcore are dropped, and only while it runs.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated as an API")
        warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated")
        stand_in = None
        try:
            importlib.import_module("pkg_resources")
        except ImportError:
            stand_in = _pkg_resources()
            blocked = sys.modules.get("pkg_resources", stand_in)
            sys.modules["pkg_resources"] = stand_in
        try:
            importlib.import_module("detectron2.model_zoo")
        finally:
            if stand_in is not None:
                del sys.modules["pkg_resources"]
                if blocked is not stand_in:
                    sys.modules["pkg_resources"] = blocked


def _pkg_resources() -> types.ModuleType:
    """A ``pkg_resources`` with the functions that Detectron2 uses."""

    def resource_filename(package: str, name: str) -> str:
        return str(importlib.resources.files(package).joinpath(name))

    def resource_exists(package: str, name: str) -> bool:
        resource = importlib.resources.files(package).joinpath(name)
        return resource.is_file() or resource.is_dir()

    module = types.ModuleType("pkg_resources", "kd_d2's stand-in for what setuptools dropped")
    module.__spec__ = ModuleSpec("pkg_resources", loader=None)
    module.resource_filename = resource_filename
    module.resource_exists = resource_exists
    return module
