"""The installer: conversion of the carrier wheel, choice of the source, the stamp."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import detectron2_wheel  # noqa: E402
import install  # noqa: E402
import install_detectron2  # noqa: E402

MINI = {
    "LabGym/__init__.py": "raise ImportError('the carrier itself')\n",
    "LabGym/tools.py": "import wx\n",
    "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
    "LabGym/detectron2/config/__init__.py": "import LabGym.detectron2.utils as u\nX = u.X\n",
    "LabGym/detectron2/utils.py": "from LabGym.detectron2 import __version__ as X\n",
    "LabGym/detectron2/model_zoo/configs/a/b.yaml": "MODEL: {}\n",
    "LabGym/detectron2_other/x.py": "",
    "labgym-3.1.2.dist-info/METADATA": "Name: LabGym\n",
}


def carrier(folder, files=MINI):
    """A small wheel shaped like the real one; returns it and its hash."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "labgym-3.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_the_wheel_holds_detectron2_and_nothing_else(tmp_path):
    source, sha256 = carrier(tmp_path / "in")
    wheel = detectron2_wheel.build_wheel(source, tmp_path, "Apache License", sha256)
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name).decode() for name in archive.namelist()}
    code = {name for name in content if not name.startswith("detectron2-0.6.dist-info/")}
    assert code == {
        "detectron2/__init__.py",
        "detectron2/config/__init__.py",
        "detectron2/utils.py",
        "detectron2/model_zoo/configs/a/b.yaml",
    }
    assert content["detectron2/utils.py"] == "from detectron2 import __version__ as X\n"
    info = "detectron2-0.6.dist-info/"
    assert content[info + "licenses/LICENSE"] == "Apache License"
    assert "Facebook" in content[info + "licenses/NOTICE"]
    assert "Name: detectron2\nVersion: 0.6\n" in content[info + "METADATA"]
    assert "Requires-Dist: fvcore" in content[info + "METADATA"]
    assert json.loads(content[info + "kd_d2_source.json"]) == {
        "source": "pypi",
        "package": "LabGym",
        "version": "3.1.2",
        "sha256": sha256,
    }
    recorded = {line.split(",")[0] for line in content[info + "RECORD"].splitlines()}
    assert recorded == set(content)


def test_pip_installs_knows_and_removes_the_wheel(tmp_path):
    source, sha256 = carrier(tmp_path / "in")
    wheel = detectron2_wheel.build_wheel(source, tmp_path, "Apache License", sha256)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    show = "from importlib.metadata import version as v; import detectron2.config as c; "
    show += "print(c.X, v('detectron2'))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = dict(check=True, text=True, capture_output=True, cwd=tmp_path, env=environment)
    assert subprocess.run([python, "-c", show], **run).stdout == "0.6 0.6\n"
    subprocess.run([*pip, "uninstall", "-q", "-y", "detectron2"], check=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    assert not list(site.glob("detectron2*"))


def test_a_wrong_hash_is_refused_before_anything_is_read(tmp_path):
    source, _ = carrier(tmp_path)
    with pytest.raises(detectron2_wheel.WheelError, match="nothing of it was installed"):
        detectron2_wheel.build_wheel(source, tmp_path, "")
    assert not list(tmp_path.glob("detectron2-*.whl"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("LabGym/detectron2/left.py", "import LabGym.other\n", "still mentions LabGym"),
        ("LabGym/detectron2/__init__.py", "", "no __version__"),
        ("LabGym/detectron2/../../evil.py", "", "unsafe path"),
    ],
)
def test_unexpected_content_is_refused(tmp_path, name, text, message):
    source, sha256 = carrier(tmp_path, {**MINI, name: text})
    with pytest.raises(detectron2_wheel.WheelError, match=message):
        detectron2_wheel.build_wheel(source, tmp_path, "", sha256)


class World:
    """Fakes of everything that the choice of a source looks at and does."""

    def __init__(self, monkeypatch, present=None, answers=True, compiler=True, builds=True):
        self.did = []
        module = install_detectron2

        def build(python):
            self.did.append("git")
            if not builds:
                raise subprocess.CalledProcessError(1, ["pip"])

        self.pip = []
        monkeypatch.setattr(module, "pip", lambda python, *a: self.pip.append(a))
        monkeypatch.setattr(module, "installed", lambda python: present)
        monkeypatch.setattr(module, "git_answers", lambda: answers)
        monkeypatch.setattr(module, "has_compiler", lambda: compiler)
        monkeypatch.setattr(module, "install_git", build)
        monkeypatch.setattr(module, "install_pypi", lambda python: self.did.append("pypi"))


USERS_OWN = {"path": "/site/detectron2/__init__.py"}
OURS = {"path": "/site/detectron2/__init__.py", "source": "pypi"}


@pytest.mark.parametrize(
    ("world", "source", "chosen", "did"),
    [
        ({"present": USERS_OWN}, "auto", "present", []),
        ({"present": OURS}, "pypi", "present", []),
        ({"present": OURS}, "git", "git", ["git"]),
        ({"present": USERS_OWN}, "pypi", "pypi", ["pypi"]),
        ({}, "auto", "git", ["git"]),
        ({"answers": False}, "auto", "pypi", ["pypi"]),
        ({"compiler": False}, "auto", "pypi", ["pypi"]),
        ({"builds": False}, "auto", "pypi", ["git", "pypi"]),
        ({}, "pypi", "pypi", ["pypi"]),
        ({"answers": False}, "git", "git", ["git"]),
    ],
)
def test_choice_of_the_source(monkeypatch, world, source, chosen, did):
    fake = World(monkeypatch, **world)
    assert install_detectron2.install_detectron2("python", source) == chosen
    assert fake.did == did


def test_constraints_are_for_our_environment_only(monkeypatch):
    fake = World(monkeypatch, present=USERS_OWN)
    install_detectron2.install_detectron2("python", constraints=ROOT / "constraints.txt")
    assert fake.pip[0][:3] == ("--no-build-isolation", "-c", str(ROOT / "constraints.txt"))
    fake = World(monkeypatch, present=USERS_OWN)
    install_detectron2.install_detectron2("python")
    assert fake.pip == []
    fake = World(monkeypatch)
    install_detectron2.install_detectron2("python")
    assert fake.pip == [tuple(detectron2_wheel.RUNTIME_REQUIREMENTS)]


def test_git_that_is_asked_for_and_fails_is_an_error(monkeypatch):
    fake = World(monkeypatch, builds=False)
    with pytest.raises(subprocess.CalledProcessError):
        install_detectron2.install_detectron2("python", "git")
    assert fake.did == ["git"]


def test_an_interrupted_detectron2_is_replaced(monkeypatch, tmp_path):
    fake = World(monkeypatch, present=OURS, answers=False)
    begun = tmp_path / "begun"
    begun.touch()
    assert install_detectron2.install_detectron2("python", "auto", begun=begun) == "pypi"
    assert fake.did == ["pypi"]
    assert not begun.exists()


def test_a_missing_git_or_a_silent_host_do_not_hang(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert not install_detectron2.git_answers()

    def silent(*args, timeout, **kwargs):
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", silent)
    assert not install_detectron2.git_answers()


def test_an_unknown_source_lists_the_known():
    assert install_detectron2.wanted_source(None) == "auto"
    assert install_detectron2.wanted_source(" PyPI") == "pypi"
    with pytest.raises(SystemExit, match="auto, git, pypi"):
        install_detectron2.wanted_source("conda")


def test_what_is_installed_is_found_with_its_path():
    found = install_detectron2.installed(sys.executable)
    assert Path(found["path"]).parent.name == "detectron2"


@pytest.fixture
def finished(tmp_path):
    """A checkout and its environment, just installed."""
    venv = tmp_path / "env"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    for name in ("constraints.txt", "setup.py"):
        (tmp_path / name).write_text(name)
    install.write_stamp(venv, "pypi", tmp_path)
    return tmp_path, venv


def test_the_stamp_follows_content_not_time(finished):
    root, venv = finished
    assert install.is_complete(venv, "auto", root)
    (root / "constraints.txt").touch()
    assert install.is_complete(venv, "auto", root)
    (root / "constraints.txt").write_text("torch==9")
    assert not install.is_complete(venv, "auto", root)


def test_another_source_another_place_or_a_lost_python_need_a_new_run(finished):
    root, venv = finished
    assert install.is_complete(venv, "pypi", root)
    assert not install.is_complete(venv, "git", root)
    moved = root / "elsewhere"
    moved.mkdir()
    for name in ("constraints.txt", "setup.py"):
        (moved / name).write_text(name)
    assert not install.is_complete(venv, "auto", moved)
    (venv / "bin" / "python").unlink()
    assert not install.is_complete(venv, "auto", root)


def test_a_damaged_or_missing_stamp_is_no_stamp(finished):
    root, venv = finished
    (venv / install.STAMP).write_text("{")
    assert not install.is_complete(venv, "auto", root)
    (venv / install.STAMP).unlink()
    assert not install.is_complete(venv, "auto", root)


def test_a_package_that_pip_did_not_finish_is_forgotten(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, file in (("whole-1.dist-info", "RECORD"), ("half-1.dist-info", "METADATA")):
        (site / name).mkdir(parents=True)
        (site / name / file).touch()
    install.remove_half_installed(tmp_path)
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]


def test_the_second_run_touches_neither_pip_nor_network(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["install.py"])
    monkeypatch.setattr(install, "is_complete", lambda venv, source: True)
    monkeypatch.setattr(install, "make_environment", lambda *a: pytest.fail("not needed"))
    install.main()


def test_a_second_installer_waits_and_then_finds_everything_done(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["install.py"])
    complete = [False, True]
    monkeypatch.setattr(install, "is_complete", lambda venv, source: complete.pop(0))
    monkeypatch.setattr(install, "make_environment", lambda *a: pytest.fail("done by the other"))
    install.main()
    assert complete == []


def test_a_failed_pip_is_reported_in_a_line_and_leaves_no_stamp(finished, monkeypatch):
    root, venv = finished

    def fails(venv, source):
        raise subprocess.CalledProcessError(
            1, ["python", "-m", "pip", "install", "--quiet", "torch"]
        )

    monkeypatch.setattr(install, "create_venv", lambda venv: None)
    monkeypatch.setattr(install, "install", fails)
    with pytest.raises(SystemExit, match="`-m pip install torch` failed, see above. The next run"):
        install.make_environment(venv, "auto")
    assert not (venv / install.STAMP).exists()
