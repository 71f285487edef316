"""``python -m kd_d2.check`` and what makes Detectron2 importable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_d2 import check

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter on this checkout, every warning shown."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "always", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_a_sound_environment_is_ok(tmp_path):
    run = python("-m", "kd_d2.check", DETECTRON2_DATASETS=str(tmp_path / "data"))
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "python",
        "torch",
        "kd_d2",
        "detectron2",
        "devices",
        "data",
        "OK",
    ]
    assert f"{tmp_path / 'data'} (does not exist yet, writable" in run.stdout
    assert "C++ operators" in run.stdout
    assert "pkg_resources" not in run.stderr and "torch.jit" not in run.stderr


def test_what_is_wrong_is_said_in_one_line(monkeypatch, capsys):
    def broken():
        raise KeyError("no such head")

    monkeypatch.setattr(check, "take_step", broken)
    assert check.main() == 1
    assert "KeyError: 'no such head'" in capsys.readouterr().out.splitlines()[-1]


def test_the_step_has_the_losses_of_lgd():
    losses = check.take_step()
    assert {"loss_cls", "loss_box_reg", "loss_cls.tea", "loss_box_reg.tea"} < set(losses)


def test_the_data_folder_lists_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "coco").mkdir()
    (tmp_path / "shapes_v1").mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert check.data_folder() == f"{tmp_path} (writable; has coco, shapes_v1)"


NOTES = {
    '{"source": "git", "url": "u", "commit": "0123456789"}': "from git 01234567",
    '{"source": "pypi", "package": "P", "version": "1", "sha256": "0"}': "from the PyPI wheel P 1",
}


@pytest.mark.parametrize("note", NOTES)
def test_the_source_that_the_installer_recorded_is_read_back(note, tmp_path, monkeypatch):
    info = tmp_path / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: detectron2\nVersion: 0.6\n")
    (info / "kd_d2_source.json").write_text(note)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check.detectron2_source() == NOTES[note]


# ---- kd_d2._compat ----------------------------------------------------------------------------

WITHOUT_PKG_RESOURCES = """
import sys
sys.modules["pkg_resources"] = None  # what `import pkg_resources` finds with setuptools >= 81
import kd_d2
from detectron2 import model_zoo
name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
assert model_zoo.get_config_file(name).endswith(name)
assert sys.modules["pkg_resources"] is None  # nobody else meets the stand-in
"""


@pytest.mark.parametrize("code", [WITHOUT_PKG_RESOURCES, "import kd_d2"])
def test_imports_quietly_with_and_without_pkg_resources(code):
    run = python("-c", code)
    assert run.returncode == 0, run.stderr
    assert "pkg_resources" not in run.stderr
    assert "torch.jit.script" not in run.stderr


# The standard library alone is left to import from.
HIDE = """
import sys
sys.path[:] = [path for path in sys.path if not path.endswith("site-packages")]
import kd_d2
"""


def test_a_missing_detectron2_is_named_with_both_ways_out():
    run = python("-c", HIDE)
    assert run.returncode == 1
    message = run.stderr.splitlines()[-1]
    assert message.startswith("ImportError: kd_d2 needs Detectron2, which is not installed")
    assert "git+https://github.com/facebookresearch/detectron2.git@02b5c4e" in message
    assert "python tools/install_detectron2.py" in message


def test_a_detectron2_that_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import not_there\n")
    run = python("-c", "import kd_d2", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert run.returncode == 1
    message = run.stderr.splitlines()[-1]
    assert f"Detectron2 is at {tmp_path}" in message
    assert "No module named 'not_there'" in message


def test_a_command_without_detectron2_ends_without_a_traceback(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import not_there\n")
    run = python("-m", "kd_d2.check", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("Detectron2 is at")
