"""Files in Google Drive, through gdown."""

import re
import sys
from pathlib import Path

from .download import Patience, store
from .progress import Progress
from .table import ZooError
from .transfer import printable
from .verify import Digest

__all__ = ["drive_id", "fetch_from_drive"]

_ID = r"[A-Za-z0-9_-]{10,}"


def drive_id(text: str) -> str:
    """The id of a file, given that or a link to share it.

    >>> drive_id("https://drive.google.com/file/d/1AbC_dEf-0123456789/view?usp=sharing")
    '1AbC_dEf-0123456789'

    Raises:
        ZooError: it is neither.
    """
    link = re.match(rf"https://(?:drive|docs)\.google\.com/.*(?:/d/|[?&]id=)({_ID})", text)
    if link or re.fullmatch(_ID, text):
        return link[1] if link else text
    raise ZooError(
        f"'{text}' is no id of a file in Google Drive: give the long part of its link, "
        "https://drive.google.com/file/d/ID/view, or the link."
    )


def fetch_from_drive(
    file_id: str, path: Path, expected: Digest | None = None, patience: Patience | None = None
) -> Path:
    """The file at ``path`` in the cache, fetched from Google Drive if it is not there yet.

    Raises:
        ZooError: gdown is not installed, or the file cannot be had.
    """
    source = f"https://drive.google.com/file/d/{file_id}"

    def get(part: Path, patience: Patience) -> bool:
        download, errors = _gdown()
        # gdown finds its own partial files by the name that they are to get
        whole = part.with_name(f"{part.name}.{file_id}")
        try:
            with Progress(path.name, patience.report_every) as progress:
                download(
                    id=file_id,
                    output=str(whole),
                    quiet=True,
                    resume=True,
                    timeout=patience.timeout,
                    retries=len(patience.waits),
                    progress=progress.update,
                )
            whole.chmod(0o644)  # gdown's temporary files are for nobody else to read
            whole.replace(part)
        except errors as error:
            raise ZooError(
                f"{source} could not be fetched ({printable(error)}): open that page "
                f"in a browser, and add the file with `python tools/model_zoo.py add NAME FILE`."
            ) from error
        return False

    return store(path, get, expected, source, patience)


def _gdown():
    """gdown's download, and what it raises when it fails."""
    try:
        import gdown
        import requests  # gdown needs it
    except ImportError as error:
        raise ZooError(
            "Files in Google Drive are fetched with gdown, which is not installed: run "
            f"`{sys.executable} -m pip install 'gdown>=6.5'`, or download the file in a browser "
            "and add it with `python tools/model_zoo.py add NAME FILE`."
        ) from error
    return gdown.download, (gdown.DownloadError, requests.RequestException)
