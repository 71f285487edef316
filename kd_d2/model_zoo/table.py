"""The table of named files, ``zoo.yaml``."""

import difflib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import yaml

__all__ = ["PREFIX", "KINDS", "ZooEntry", "ZooError", "check_weights_name", "entries", "find"]

PREFIX = "kd_d2://"
KINDS = ("detector", "backbone", "distilled")
_TABLE = Path(__file__).resolve().parent / "zoo.yaml"


class ZooError(ValueError):
    """A name or file of the model zoo cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class ZooEntry:
    """One file that has a name.

    Attributes:
        name: without ``kd_d2://``.
        kind: one of ``KINDS``.
        config: the config of these weights, kd_d2's or Detectron2's; None where it has none.
        licence: of the file.
        source: where the figures come from.
        url: the file's address; None if it has none.
        gdrive: its id in Google Drive; None if it has none, or none is known.
        page: where a person finds the file if neither of the two is known.
        sha256: of the whole file, where known.
        box_ap: on COCO val2017, as the source reports it.
        mask_ap: the same for masks.
        convert_from: the format from which tools/convert_checkpoint.py makes weights; "" if the
            file is used as it is.
        notes: what else to know.
    """

    name: str
    kind: str
    config: str | None
    licence: str
    source: str
    url: str | None = None
    gdrive: str | None = None
    page: str | None = None
    sha256: str | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    convert_from: str = ""
    notes: str = ""

    @property
    def address(self) -> str:
        """What MODEL.WEIGHTS calls it."""
        return PREFIX + self.name

    def as_dict(self) -> dict:
        return asdict(self)


@lru_cache(maxsize=1)
def entries() -> dict[str, ZooEntry]:
    """All entries by name, in the order of the table."""
    table = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))["entries"]
    return {name: ZooEntry(name=name, **fields) for name, fields in table.items()}


def find(name: str) -> ZooEntry:
    """The entry of a name, with or without ``kd_d2://``.

    A query, which Detectron2's checkpointer takes as a word to itself, is passed over.

    Raises:
        ZooError: there is none; the nearest are named.
    """
    known = entries()
    name = name.removeprefix(PREFIX).partition("?")[0]
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if not near:  # somebody who has the folder wrong has the name right
        by_last = {entry.rpartition("/")[2]: entry for entry in known}
        last = difflib.get_close_matches(name.rpartition("/")[2], by_last, n=3, cutoff=0.6)
        near = [by_last[match] for match in last]
    guess = f": did you mean {' or '.join(near)}?" if near else "."
    raise ZooError(
        f"There is no {PREFIX}{name} in kd_d2's model zoo{guess} "
        "`python tools/model_zoo.py list` shows all names."
    )


def check_weights_name(weights: str) -> None:
    """Refuses a ``kd_d2://`` name that cannot be used as weights; fetches nothing.

    Args:
        weights: what a config says; anything but a ``kd_d2://`` name passes.

    Raises:
        ZooError: the name is unknown (the nearest are named), or the file has to be converted.
    """
    if weights.startswith(PREFIX):
        entry = find(weights)
        if entry.convert_from:
            raise ZooError(
                f"{entry.address} is in its authors' format and cannot be used as weights as it "
                f"is: run `{conversion(entry)}`, and give OUT.pth."
            )


def conversion(entry: ZooEntry) -> str:
    """The command that makes weights of a file in another format."""
    return (
        f"python tools/convert_checkpoint.py --from {entry.convert_from} {entry.address} OUT.pth "
        f"--config-file configs/{entry.config}"
    )
