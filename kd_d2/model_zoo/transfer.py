"""One request for the rest of a file.

Only HTTP and HTTPS are spoken, also where a server redirects.
"""

import http.client
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from .cache import read_note, remove_note, source_of, write_note
from .progress import Progress
from .table import ZooError
from .verify import looks_wrong

__all__ = ["Interrupted", "printable", "receive", "scheme_of"]

_CHUNK = 1 << 20
_TRY_AGAIN = (408, 425, 429)  # and whatever begins with 5


class Interrupted(Exception):
    """The file did not arrive whole, and another request may get the rest."""


def scheme_of(url: str) -> str:
    return url.partition("://")[0].lower()


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if scheme_of(newurl) not in ("http", "https"):
            raise ZooError(
                f"{source_of(req.full_url)} redirects to {newurl[:60]!r}, which is not fetched: "
                "only http:// and https:// are."
            )
        if scheme_of(req.full_url) == "https" and scheme_of(newurl) == "http":
            raise ZooError(
                f"{source_of(req.full_url)} redirects to {source_of(newurl)}, which anybody on "
                "the way could change, and which is not fetched: give an https:// address."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """What opens http:// and https:// and, unlike urllib's own, neither files nor FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def receive(
    url: str, part: Path, progress: Progress, timeout: float, resume_unseen: bool = False
) -> bool:
    """Adds to ``part`` what it lacks of a file; begins anew if the file is another one by now.

    What is known of the file is noted beside ``part`` until the note is removed by the caller.

    Args:
        url: http:// or https://.
        part: what earlier requests got, or nothing yet.
        progress: told after every piece.
        timeout: seconds to wait for the connection and for each piece.
        resume_unseen: go on even if the server says nothing by which a changed file could be told
            from the old one, because a hash will tell.

    Returns:
        whether something of an earlier request is in the file.

    Raises:
        Interrupted: something is missing still.
        ZooError: the server has no such file, or sends something else.
    """
    note = read_note(part, "of")
    have = part.stat().st_size if part.exists() else 0
    validator = note.get("etag") or note.get("modified")
    known = note.get("source") == source_of(url) and (validator or resume_unseen)
    if have and not known:
        _discard(part)
        have = 0
    headers = {"User-Agent": "kd_d2", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:
                return _judge_unsatisfiable(error, part, have, note)
            raise _http_error(url, error.code) from None
    except http.client.InvalidURL as error:
        raise ZooError(f"'{source_of(url)}' is no valid address ({error}): check it.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ZooError(
                f"The certificate of {source_of(url)} cannot be verified "
                f"({reason.verify_message}): the clock or the system's certificates may be "
                "wrong, or somebody is in between."
            ) from error
        raise Interrupted(printable(reason)) from error
    with response:
        return _store(url, response, part, have, note, progress)


def _http_error(url: str, code: int) -> Exception:
    text = f"HTTP {code} {http.client.responses.get(code, '')}".strip()
    if code in _TRY_AGAIN or code >= 500:
        return Interrupted(text)
    if 300 <= code < 400:
        remedy = "it redirects in circles, or to what is no http:// or https:// address"
        return ZooError(f"{source_of(url)} could not be fetched ({text}): {remedy}.")
    remedy = {
        401: "the file is not public",
        403: "the file is not public, or is gone",
        404: "check the address",
        410: "the file is gone",
    }.get(code, "check the address")
    return ZooError(f"{source_of(url)} could not be fetched ({text}): {remedy}.")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    remove_note(part, "of")


def _judge_unsatisfiable(error, part: Path, have: int, note: dict) -> bool:
    """The server has nothing beyond what there is: it is all, or it is of another file."""
    total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
    if total and int(total[1]) == have and note.get("length") in (None, have):
        return True
    _discard(part)
    raise Interrupted("the file has another length than announced")


def _version(headers) -> dict[str, str]:
    """By what a server tells versions of a file apart; a weak ETag cannot vouch for bytes."""
    etag = headers.get("ETag", "")
    return {
        "etag": "" if etag.startswith("W/") else etag,
        "modified": headers.get("Last-Modified", ""),
    }


def _store(url: str, response, part: Path, have: int, note: dict, progress: Progress) -> bool:
    headers = response.headers
    if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise ZooError(
            f"{source_of(url)} is sent compressed ({headers['Content-Encoding']}), although the "
            "file itself was asked for: fetch it by other means."
        )
    resumed = response.status == 206
    if resumed:
        total = _check_range(response, part, have, note)
    else:
        have = 0
        total = _length(headers.get("Content-Length"))
    piece = _read(response)
    if not resumed and (what := looks_wrong(piece, headers.get("Content-Type", ""))):
        raise ZooError(f"{source_of(url)} is {what}, and no weights: check the address.")
    note = {"source": source_of(url), "length": total, **_version(headers)}
    if not resumed:
        part.unlink(missing_ok=True)
    write_note(part, "of", note)
    with open(part, "ab") as f:
        while piece:
            f.write(piece)
            have += len(piece)
            progress.update(have, total)
            # What has arrived is to survive if the next piece does not come
            f.flush()
            piece = _read(response)
    if have == 0:
        raise Interrupted("the answer is empty")
    if total is not None and have != total:
        if have > total:
            _discard(part)
        raise Interrupted(f"{have:,} of {total:,} bytes arrived")
    return resumed


def _read(response) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(printable(error)) from error


def printable(error: object) -> str:
    """What a server said, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)


def _length(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _check_range(response, part: Path, have: int, note: dict) -> int | None:
    """The whole file's length by a 206; discards what there is if that is of another file."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    total = _length(match[3]) if match else None
    version = _version(response.headers)
    fits = (
        match is not None
        and int(match[1]) == have
        and (total is None or note.get("length") in (None, total))
        and all(not new or note.get(key) in (None, "", new) for key, new in version.items())
    )
    if not fits:
        _discard(part)
        raise Interrupted("the file has changed since the download began")
    return total if total is not None else note.get("length")
