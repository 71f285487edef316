"""Whether a fetched file is the one that was meant."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Digest", "known_digest", "looks_wrong", "mismatch"]

# Detectron2's MODEL_ZOO.md: "any model on this page contains its md5 prefix in its file name"
_DETECTRON2 = re.compile(
    r"https?://dl\.fbaipublicfiles\.com/detectron2/.*/model_(?:final|\d+)_([0-9a-f]{6,32})\.pkl"
)
# torch.hub: the name ends in a dash and the first eight or more digits of the SHA-256
_TORCH = re.compile(r"https?://download\.pytorch\.org/.*-([0-9a-f]{8,64})\.pth")

_LENGTHS = {"md5": 32, "sha256": 64}
_WEIGHTS = (b"PK\x03\x04", b"\x80")  # how the files of torch.save and of pickle begin

_checked: set[tuple] = set()  # files of this process that are known to be right


@dataclass(frozen=True)
class Digest:
    """The first digits of a file's hash."""

    algorithm: str
    digits: str

    def __str__(self) -> str:
        begins = "is" if len(self.digits) == _LENGTHS[self.algorithm] else "begins with"
        return f"whose {self.algorithm.upper()} {begins} {self.digits}"


def known_digest(url: str = "", sha256: str | None = None) -> Digest | None:
    """What is known of a file's hash: given, or in its name where the name is known to have it.

    >>> known_digest("https://download.pytorch.org/models/resnet50-0676ba61.pth")
    Digest(algorithm='sha256', digits='0676ba61')

    Raises:
        ValueError: ``sha256`` is none.
    """
    if sha256:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ValueError(f"'{sha256}' is no SHA-256: give 64 hexadecimal digits.")
        return Digest("sha256", sha256.lower())
    if match := _DETECTRON2.fullmatch(url):
        return Digest("md5", match[1])
    if match := _TORCH.fullmatch(url):
        return Digest("sha256", match[1])
    return None


def mismatch(path: Path, expected: Digest | None) -> str:
    """Says what the hash of a file is if it is another than expected; "" if it is right.

    A file is read once per process, and again if its size or time changes.
    """
    if expected is None:
        return ""
    stat = os.stat(path)
    # without its name, which it gets only when it has been checked
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, expected)
    if key in _checked:
        return ""
    digest = hashlib.new(expected.algorithm, usedforsecurity=False)
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest().startswith(expected.digits):
        _checked.add(key)
        return ""
    return f"its {expected.algorithm.upper()} is {digest.hexdigest()}"


def looks_wrong(start: bytes, content_type: str = "") -> str:
    """Says what a file is that begins like an error page instead of weights; "" if it may be some.

    Args:
        start: the first bytes.
        content_type: what the server calls it.

    >>> looks_wrong(b"<!DOCTYPE html><html>")
    'a web page'
    """
    if start.startswith(_WEIGHTS):
        return ""
    text = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") or text.startswith(
        (b"<!doctype html", b"<html", b"<head")
    ):
        return "a web page"
    if text.startswith(b"<?xml"):
        return "an XML message"
    if kind == "application/json" and text.startswith((b"{", b"[")):
        return "a JSON message"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file"
    return ""
