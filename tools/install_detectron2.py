"""Installs Detectron2 into the environment of a Python: ``python tools/install_detectron2.py``.

``DETECTRON2_SOURCE`` (or ``--source``) chooses:

* unset or ``auto``: a Detectron2 that is already there is used as it is; else ``git`` where GitHub
  answers within seconds and the build succeeds; else ``pypi``.
* ``git``: the pinned commit of the upstream repository. Builds the C++ operators: wants a compiler.
* ``pypi``: the copy of Detectron2 0.6 carried by a pinned PyPI wheel, verified by its hash.
  Python only: what kd_d2 needs, without rotated boxes and Detectron2's own deformable convolution.

torch and torchvision must be in the environment first. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from detectron2_wheel import (
    CARRIER,
    RUNTIME_REQUIREMENTS,
    SOURCE_FILE,
    WheelError,
    build_wheel,
    download_carrier,
)

ROOT = Path(__file__).resolve().parent.parent
GIT_URL = "https://github.com/facebookresearch/detectron2.git"
GIT_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
SOURCES = ("auto", "git", "pypi")
PROBE_SECONDS = 8

# Runs in the target environment; prints where its Detectron2 is and what kd_d2 noted about it.
_FIND = f"""
import importlib.metadata, json
import detectron2.config, detectron2.layers
try:
    noted = importlib.metadata.distribution("detectron2").read_text("{SOURCE_FILE}")
except importlib.metadata.PackageNotFoundError:
    noted = None
print(json.dumps(dict(json.loads(noted or "{{}}"), path=detectron2.__file__)))
"""

# Runs in the target environment: leaves a note in the metadata that pip wrote, known to RECORD, so
# that `pip uninstall detectron2` leaves nothing behind.
_NOTE = f"""
import importlib.metadata, sys
files = importlib.metadata.distribution("detectron2").files
info = next(file.locate().parent for file in files if file.name == "METADATA")
(info / "{SOURCE_FILE}").write_text(sys.argv[1])
with open(info / "RECORD", "a") as record:
    record.write(f"{{info.name}}/{SOURCE_FILE},,\\n")
"""


def say(text: str) -> None:
    print(f"[kd_d2] {text}", flush=True)


def wanted_source(value: str | None) -> str:
    """Checks the value of DETECTRON2_SOURCE; raises SystemExit for anything unknown."""
    source = (value or "auto").strip().lower()
    if source not in SOURCES:
        raise SystemExit(f"DETECTRON2_SOURCE is {value!r}: use one of {', '.join(SOURCES)}.")
    return source


def git_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Whether the upstream repository can be reached soon; False without a git command."""
    environment = dict(os.environ, GIT_TERMINAL_PROMPT="0")
    try:
        probe = subprocess.run(
            ["git", "ls-remote", GIT_URL, "HEAD"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def has_compiler() -> bool:
    """Whether a C++ compiler is there, without which the git source cannot be built."""
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return any(name and shutil.which(name.split()[0]) for name in candidates)


def installed(python: str) -> dict | None:
    """What is installed: ``path`` and kd_d2's note about its source; None if it cannot be used."""
    found = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, cwd=os.sep)
    return json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else None


def pip(python: str, *arguments: str) -> None:
    """Runs ``pip install``; its progress goes to the terminal, a log file gets errors only."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    base = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*base, *quiet, *arguments], check=True)


def install_git(python: str) -> None:
    """Builds and installs the pinned commit."""
    pip(
        python,
        "--no-build-isolation",
        "--no-deps",
        "--force-reinstall",
        f"git+{GIT_URL}@{GIT_COMMIT}",
    )
    note = json.dumps({"source": "git", "url": GIT_URL, "commit": GIT_COMMIT})
    subprocess.run([python, "-c", _NOTE, note], check=True, cwd=os.sep)


def install_pypi(python: str) -> None:
    """Downloads the carrier, verifies and converts it, installs the result."""
    with tempfile.TemporaryDirectory(prefix="kd_d2-detectron2-") as folder:
        carrier = download_carrier(python, Path(folder))
        wheel = build_wheel(carrier, Path(folder), (ROOT / "LICENSE").read_text())
        pip(python, "--no-deps", "--force-reinstall", str(wheel))


def install_detectron2(
    python: str,
    source: str = "auto",
    constraints: Path | None = None,
    begun: Path | None = None,
) -> str:
    """Sees to it that ``python`` can import Detectron2.

    Args:
        python: interpreter of the target environment; torch is in there already.
        source: one of ``SOURCES``.
        constraints: brings Detectron2's requirements to these versions, in an environment of ours
            with setuptools in it; without, an environment of the user's keeps what it has.
        begun: a file that exists while Detectron2 is being put in place: if it is there from an
            earlier run, that one was interrupted and its Detectron2 is replaced.

    Returns:
        "present", "git" or "pypi".

    Raises:
        subprocess.CalledProcessError, WheelError: if the source that was asked for fails.
    """
    if constraints:
        # without isolation the pinned setuptools builds them, not whatever is newest today
        pip(python, "--no-build-isolation", "-c", str(constraints), *RUNTIME_REQUIREMENTS)
    interrupted = begun is not None and begun.exists()
    found = None if interrupted else installed(python)
    if found and source in ("auto", found.get("source")):
        say(f"Detectron2: using the one that is there, {Path(found['path']).parent}")
        return "present"
    if not constraints:
        pip(python, *RUNTIME_REQUIREMENTS)
    if begun:
        begun.touch()
    chosen = _install_from(python, source)
    if begun:
        begun.unlink()
    return chosen


def _install_from(python: str, source: str) -> str:
    """Installs from git or PyPI and says why; returns which of the two it was."""
    if source == "git":
        say(f"Detectron2: building upstream git {GIT_COMMIT[:8]} (several minutes)")
        install_git(python)
        return "git"
    if source == "auto":
        if not git_answers():
            say(f"Detectron2: no answer from {GIT_URL} within {PROBE_SECONDS} s")
        elif not has_compiler():
            say("Detectron2: no C++ compiler here, so upstream's git cannot be built")
        else:
            say(f"Detectron2: building upstream git {GIT_COMMIT[:8]} (several minutes)")
            try:
                install_git(python)
                return "git"
            except subprocess.CalledProcessError:
                say("Detectron2: the git build failed, see above")
    say(f"Detectron2: taking the copy inside the PyPI wheel {CARRIER} (hash checked)")
    install_pypi(python)
    return "pypi"


def reason(error: Exception) -> str:
    """What failed, in a few words; pip's own message is on the terminal already."""
    if isinstance(error, subprocess.CalledProcessError):
        command = [part for part in map(str, error.cmd[1:]) if not part.startswith("--")]
        return f"`{' '.join(command[:6])}` failed, see above"
    return str(error).rstrip(".")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="like DETECTRON2_SOURCE", choices=SOURCES)
    arguments = parser.parse_args()
    source = wanted_source(arguments.source or os.environ.get("DETECTRON2_SOURCE"))
    try:
        chosen = install_detectron2(sys.executable, source)
    except (subprocess.CalledProcessError, WheelError) as error:
        raise SystemExit(f"[kd_d2] Detectron2 was not installed: {reason(error)}.") from None
    say(f"Detectron2 is ready ({chosen})")


if __name__ == "__main__":
    main()
