"""From an address of weights to a local file: kd_d2://, detectron2://, catalog://, http(s)://."""

from pathlib import Path

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler, OneDrivePathHandler, PathManager
from iopath.common.file_io import HTTPURLHandler

from .adding import put
from .cache import cache_folder, cache_path, is_offline, source_of
from .download import fetch, require_right
from .gdrive import drive_id, fetch_from_drive
from .table import PREFIX, ZooEntry, ZooError, entries, find
from .verify import known_digest

__all__ = ["add_file", "cached_file", "get_file", "is_fetched_here", "local_file"]

_CATALOG = "catalog://"
_DETECTRON2 = Detectron2Handler.PREFIX
_HEURISTICS = "matching_heuristics=True"  # a word to Detectron2's checkpointer, in a URL's query


def is_fetched_here(address: str) -> bool:
    """Whether :func:`local_file` knows what kind of address this is (ftp:// is one to refuse).

    Others belong to handlers that somebody registered with Detectron2's ``PathManager``.
    """
    if address.startswith(OneDrivePathHandler.ONE_DRIVE_PREFIX):
        return False
    known = ("http://", "https://", "ftp://", PREFIX, _DETECTRON2, _CATALOG)
    return address.lower().startswith(known)


def local_file(address: str, sha256: str | None = None) -> Path:
    """The local file of an address, fetched if it is not in the cache.

    Args:
        address: of a kind that :func:`is_fetched_here` knows.
        sha256: of the file, if the caller knows it.

    Raises:
        ZooError: there is no such name, or the file cannot be had; says what to do.
    """
    if address.startswith(PREFIX):
        return get_file(find(address), sha256)
    url = _url(address)
    named = next((e.sha256 for e in entries().values() if e.url == url), None)
    path = fetch(url, sha256 or named)
    _tell_detectron2(url, path)
    return path


def _without_heuristics(address: str) -> str:
    """The address as a server is to see it."""
    address, _, query = address.partition("#")[0].partition("?")
    query = "&".join(part for part in query.split("&") if part and part != _HEURISTICS)
    return f"{address}?{query}" if query else address


def _url(address: str) -> str:
    address = _without_heuristics(address)
    if address.startswith(_DETECTRON2):
        return Detectron2Handler.S3_DETECTRON2_PREFIX + address.removeprefix(_DETECTRON2)
    if address.startswith(_CATALOG):
        try:
            return ModelCatalog.get(address.removeprefix(_CATALOG))
        except (KeyError, RuntimeError) as error:
            raise ZooError(
                f"'{address}' is not in Detectron2's catalog: its names are those of "
                "detectron2/checkpoint/catalog.py."
            ) from error
    return address


def _tell_detectron2(url: str, path: Path) -> None:
    """Has stock code of this process find the file in whatever folder it is.

    Detectron2's checkpointers ask their handler for the URL once more, without its query, and that
    looks in iopath's folder only.
    """
    handler = getattr(PathManager, "_path_handlers", {}).get("https://")
    if isinstance(handler, HTTPURLHandler):
        handler.cache_map[source_of(url)] = str(path)


def _place(entry: ZooEntry) -> Path:
    if entry.url:
        return cache_path(entry.url)
    return cache_folder() / "kd_d2" / f"{entry.name}.pth"


def cached_file(entry: ZooEntry) -> Path | None:
    """The entry's file if it is in the cache; nothing is fetched."""
    path = _place(entry)
    return path if path.is_file() else None


def get_file(entry: ZooEntry, sha256: str | None = None, gdrive: str | None = None) -> Path:
    """The local file of an entry, fetched if it is not in the cache.

    Args:
        entry: of the table.
        sha256: of the file, if the caller knows it.
        gdrive: the id of the file in Google Drive, or a link to it, if the caller knows it.

    Raises:
        ZooError: the file cannot be had.
    """
    sha256 = sha256 or entry.sha256
    gdrive = gdrive or entry.gdrive
    if entry.url:
        if gdrive:
            raise ZooError(f"{entry.name} lives at {entry.url}, and not in Google Drive.")
        path = fetch(entry.url, sha256)
        _tell_detectron2(entry.url, path)
        return path
    path, expected = _place(entry), known_digest(sha256=sha256)
    if gdrive:
        return fetch_from_drive(drive_id(gdrive), path, expected)
    if not path.is_file():
        where = f" and be put at '{path}'" if is_offline() else ""
        raise ZooError(
            f"{entry.name} has no address that kd_d2 knows: open {entry.page}, and give the id of "
            f"its file in Google Drive (python tools/model_zoo.py get {entry.name} --gdrive-id ID) "
            f"or the file that you downloaded (python tools/model_zoo.py add {entry.name} FILE)"
            f"{where}."
        )
    return require_right(path, expected)


def add_file(entry: ZooEntry, file: str | Path, sha256: str | None = None) -> Path:
    """Puts a user's file under the name of an entry.

    Raises:
        ZooError: there is no such file, or it is not the entry's by its hash, or no checkpoint.
    """
    expected = known_digest(entry.url or "", sha256 or entry.sha256)
    return put(_place(entry), file, expected, entry.url or entry.address)
