"""``kd_d2://`` for stock Detectron2 code."""

from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

from .files import local_file
from .table import PREFIX

__all__ = ["ZooHandler", "register_handler"]


class ZooHandler(PathHandler):
    """Finds the files of kd_d2's model zoo, fetching them if need be."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return str(local_file(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any):
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can be read only, and mode is '{mode}'.")
        return open(self._get_local_path(path), mode, buffering)


def register_handler() -> None:
    """Registers ``kd_d2://`` with Detectron2's PathManager."""
    PathManager.register_handler(ZooHandler(), allow_override=True)
