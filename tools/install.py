"""Makes the environment that ``make demo`` and ``make test`` run in: ``python3 tools/install.py``.

Creates ``.venv`` and installs, in this order, torch and torchvision, Detectron2 (see
install_detectron2.py) and kd_d2 itself with its test tools, everything at the versions of
constraints.txt. When that is done it writes a stamp with a hash of what was asked for; the next run
compares the hash and ends at once, without the network. A run that was interrupted left no stamp
and is simply continued. Standard library only: it runs under the bare system Python.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036  before the imports below, which older versions cannot read
    sys.exit(
        f"kd_d2 needs Python 3.10 or newer and this is {sys.version.split()[0]}: "
        "name one with `make PYTHON=python3.11 ...`."
    )

from detectron2_wheel import CARRIER, CARRIER_SHA256, WheelError  # noqa: E402
from install_detectron2 import (  # noqa: E402
    GIT_COMMIT,
    ROOT,
    install_detectron2,
    pip,
    reason,
    say,
    wanted_source,
)

STAMP = "kd_d2-installed.json"
BEGUN = "kd_d2-detectron2-begun"


def wanted_hash(root: Path = ROOT) -> str:
    """Hash of everything that decides what the environment holds."""
    digest = hashlib.sha256()
    for name in ("constraints.txt", "setup.py"):
        digest.update((root / name).read_bytes())
    digest.update(f"{GIT_COMMIT} {CARRIER} {CARRIER_SHA256}".encode())
    return digest.hexdigest()


def interpreter(venv: Path) -> Path:
    return venv / "bin" / "python"


def runs(*command: str) -> bool:
    """Whether a command can be started and succeeds; what it says is swallowed."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def is_complete(venv: Path, source: str, root: Path = ROOT) -> bool:
    """Whether the stamp says that all of this is there, for a checkout at this place."""
    try:
        stamp = json.loads((venv / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return (
        stamp.get("hash") == wanted_hash(root)
        and stamp.get("root") == str(root)
        and source in ("auto", stamp.get("detectron2"))
        and runs(str(interpreter(venv)), "-c", "")
    )


def create_venv(venv: Path) -> None:
    """Creates the environment, or repairs one whose creation was interrupted."""
    if runs(str(interpreter(venv)), "-m", "pip", "--version"):
        return
    say(f"creating {venv} with Python {sys.version.split()[0]}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)]).returncode:
        raise SystemExit(
            "[kd_d2] python -m venv failed: on Debian and Ubuntu `apt install python3-venv`."
        )


def remove_half_installed(venv: Path) -> None:
    """Drops metadata without RECORD, which pip leaves when it is killed and then takes as complete.

    Must run before pip does: afterwards pip installs those packages again.
    """
    for info in venv.glob("lib/python*/site-packages/*.dist-info"):
        if not (info / "RECORD").is_file():
            say(f"repairing {info.name}")
            shutil.rmtree(info)


def install(venv: Path, source: str) -> str:
    """Installs everything into ``venv``; returns the source of Detectron2."""
    python = str(interpreter(venv))
    constraints = ["-c", str(ROOT / "constraints.txt")]
    say("1/3  torch and torchvision (the first time about 3 GB to download: minutes)")
    pip(python, *constraints, "torch", "torchvision")
    pip(python, *constraints, "setuptools<81", "wheel")
    say("2/3  Detectron2 and what it needs")
    chosen = install_detectron2(python, source, ROOT / "constraints.txt", venv / BEGUN)
    say("3/3  kd_d2 and its test tools")
    pip(python, *constraints, "--no-build-isolation", "-e", f"{ROOT}[test]")
    return chosen


def write_stamp(venv: Path, source: str, root: Path = ROOT) -> None:
    """Says that the environment is complete; written last, and at once or not at all."""
    content = {"hash": wanted_hash(root), "root": str(root), "detectron2": source}
    temporary = venv / (STAMP + ".new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, venv / STAMP)


def recorded_source(venv: Path) -> str:
    """The source in the metadata of the installed Detectron2; "" where kd_d2 did not install it."""
    for note in venv.glob("lib/python*/site-packages/detectron2-*.dist-info/kd_d2_source.json"):
        return json.loads(note.read_text())["source"]
    return ""


@contextlib.contextmanager
def alone():
    """Keeps a second installer waiting, such as that of `make demo` beside `make test`."""
    checkout = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(checkout, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another installation is running in this checkout: waiting for it")
            fcntl.flock(checkout, fcntl.LOCK_EX)
        yield
    finally:
        os.close(checkout)


def make_environment(venv: Path, source: str) -> None:
    """Creates or completes the environment; SystemExit says in a line why it could not."""
    start = time.monotonic()
    try:
        create_venv(venv)
        (venv / STAMP).unlink(missing_ok=True)
        remove_half_installed(venv)
        chosen = install(venv, source)
    except (subprocess.CalledProcessError, WheelError) as error:
        raise SystemExit(
            f"[kd_d2] The installation stopped: {reason(error)}. The next run continues."
        ) from None
    except KeyboardInterrupt:
        raise SystemExit("\n[kd_d2] Interrupted; the next run continues.") from None
    write_stamp(venv, recorded_source(venv))
    seconds = time.monotonic() - start
    say(f"ready after {seconds:.0f} s: {venv}, Detectron2 from {recorded_source(venv) or chosen}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", default=ROOT / ".venv", type=Path, help="default: .venv")
    venv = parser.parse_args().venv.absolute()
    source = wanted_source(os.environ.get("DETECTRON2_SOURCE"))
    if is_complete(venv, source):
        return
    with alone():
        if not is_complete(venv, source):
            make_environment(venv, source)


if __name__ == "__main__":
    main()
