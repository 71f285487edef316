"""Makes an installable Detectron2 wheel from the copy that a PyPI package carries.

Detectron2 itself has no release on PyPI. LabGym 3.1.2 vendors Detectron2 0.6 as
``LabGym/detectron2``: the Python files and the model zoo's configs, where only the imports were
renamed. This file takes that folder, and nothing else of the package, renames the imports back and
packs the result as an ordinary pure-Python wheel, so that pip knows it, lists it and can remove it.

Standard library only: it runs under the bare system Python.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path

CARRIER = "LabGym==3.1.2"
CARRIER_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
CARRIER_FOLDER = "LabGym/detectron2/"
SOURCE_FILE = "kd_d2_source.json"

# What Detectron2's own setup.py asks for at run time, torch and torchvision apart.
RUNTIME_REQUIREMENTS = [
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
]

NOTICE = """\
Detectron2
Copyright (c) Facebook, Inc. and its affiliates. Licensed under the Apache License, Version 2.0.
https://github.com/facebookresearch/detectron2
These files come from the PyPI wheel of {carrier} (folder {folder});
only the name of the package in their import statements was changed back to detectron2.
"""


class WheelError(RuntimeError):
    """The carrier is not what it should be."""


def download_carrier(python: str, folder: Path) -> Path:
    """Downloads the carrier's wheel with pip, without its dependencies.

    ``--python-version``: the package declares Python < 3.11, which concerns its own code; the
    Detectron2 inside runs on every version that kd_d2 supports.

    Raises:
        subprocess.CalledProcessError: if pip cannot get it.
    """
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.10", "-d", str(folder), CARRIER]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def verify(wheel: Path, sha256: str = CARRIER_SHA256) -> None:
    """Raises WheelError unless the file has exactly this hash."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise WheelError(
            f"{wheel.name} has sha256 {found} instead of {sha256}: nothing of it was installed. "
            "Delete pip's cached copy (pip cache purge) and try again."
        )


def carried_files(wheel: Path) -> dict[str, bytes]:
    """Detectron2's files out of the carrier: path below site-packages -> content.

    Raises:
        WheelError: if the carrier's name is left in a Python file, or Detectron2 is not in there.
    """
    carrier_package = CARRIER_FOLDER.split("/")[0]
    import_path = re.compile(rb"\b" + carrier_package.encode() + rb"\.detectron2\b")
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not name.startswith(CARRIER_FOLDER) or name.endswith("/"):
                continue
            target = "detectron2/" + name[len(CARRIER_FOLDER) :]
            if ".." in Path(target).parts:
                raise WheelError(f"{wheel.name} holds the unsafe path {name}.")
            content = archive.read(name)
            if name.endswith(".py"):
                content = import_path.sub(b"detectron2", content)
                if carrier_package.encode() in content:
                    raise WheelError(f"{name} still mentions {carrier_package} after renaming.")
            files[target] = content
    if "detectron2/__init__.py" not in files:
        raise WheelError(f"{wheel.name} holds no {CARRIER_FOLDER}__init__.py.")
    return files


def carried_version(files: dict[str, bytes]) -> str:
    """Detectron2's own version, as its ``__init__.py`` states it."""
    found = re.search(rb'^__version__ = "([\w.+]+)"', files["detectron2/__init__.py"], re.M)
    if not found:
        raise WheelError("The carried detectron2/__init__.py states no __version__.")
    return found.group(1).decode()


def _metadata(version: str) -> str:
    lines = ["Metadata-Version: 2.1", "Name: detectron2", f"Version: {version}"]
    lines += ["Summary: Detectron2, repacked by kd_d2 from the copy in a PyPI wheel"]
    lines += ["Home-page: https://github.com/facebookresearch/detectron2"]
    lines += ["Author: FAIR", "License: Apache-2.0"]
    lines += [f"Keywords: source: PyPI wheel {CARRIER} sha256 {CARRIER_SHA256}"]
    lines += ["License-File: LICENSE", "License-File: NOTICE", "Requires-Python: >=3.10"]
    lines += [f"Requires-Dist: {requirement}" for requirement in RUNTIME_REQUIREMENTS]
    return "\n".join(lines) + "\n"


def _record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def build_wheel(carrier: Path, folder: Path, licence: str, sha256: str = CARRIER_SHA256) -> Path:
    """Converts a carrier into ``detectron2-<version>-py3-none-any.whl``.

    Args:
        carrier: the downloaded wheel.
        folder: where to write.
        licence: text of the Apache licence, which the carrier does not include for this folder.
        sha256: what the carrier must hash to.

    Raises:
        WheelError: for a wrong hash or unexpected content.
    """
    verify(carrier, sha256)
    files = carried_files(carrier)
    version = carried_version(files)
    info = f"detectron2-{version}.dist-info"
    name, carrier_version = CARRIER.split("==")
    source = {"source": "pypi", "package": name, "version": carrier_version, "sha256": sha256}
    notice = NOTICE.format(carrier=CARRIER, folder=CARRIER_FOLDER)
    files[f"{info}/licenses/LICENSE"] = licence.encode()
    files[f"{info}/licenses/NOTICE"] = notice.encode()
    files[f"{info}/{SOURCE_FILE}"] = json.dumps(source, indent=1).encode() + b"\n"
    files[f"{info}/top_level.txt"] = b"detectron2\n"
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: kd_d2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/METADATA"] = _metadata(version).encode()
    record = [_record_line(path, content) for path, content in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    wheel = folder / f"detectron2-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel
