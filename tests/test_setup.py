"""setup.py: what it declares, what it maps, and that constraints.txt agrees with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import detectron2_wheel  # noqa: E402

# Runs setup.py with setuptools.setup replaced; torch and detectron2 cannot be imported.
RUN_SETUP = """
import json, runpy, sys
sys.modules.update(torch=None, torchvision=None, detectron2=None)
import setuptools
told = {}
setuptools.setup = told.update
runpy.run_path("setup.py")
print(json.dumps({key: told[key] for key in told if key not in ("cmdclass", "long_description")}))
"""


@pytest.fixture(scope="module")
def told():
    run = subprocess.run(
        [sys.executable, "-c", RUN_SETUP], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_setup_declares_ranges_and_leaves_detectron2_out(told):
    assert told["python_requires"] == ">=3.10"
    assert any(entry.startswith("torch>=") for entry in told["install_requires"])
    assert not any("detectron2" in entry for entry in told["install_requires"])
    assert {entry.split(">")[0] for entry in told["extras_require"]["test"]} == {
        "pytest",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "scikit-learn",
    }


def test_setup_maps_every_project(told):
    inits = [path for path in ROOT.glob("projects/*/*/__init__.py") if path.parent.name.islower()]
    assert inits
    for init in inits:
        name = f"kd_d2.projects.{init.parent.name}"
        assert told["package_dir"][name] == str(init.parent.relative_to(ROOT))
        assert name in told["packages"]
    assert {"kd_d2", "kd_d2.modeling", "kd_d2.model_zoo"} <= set(told["packages"])
    assert not [name for name in told["packages"] if not name.startswith("kd_d2")]


def test_every_requirement_is_pinned_once_per_python(told):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.split("#")[0].strip():
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for version in ("3.10", "3.11", "3.13"):
        for name, entries in pins.items():
            valid = [
                p for p in entries if not p.marker or p.marker.evaluate({"python_version": version})
            ]
            assert len(valid) <= 1, name
        wanted = [*told["install_requires"], *told["extras_require"]["test"], "setuptools<81"]
        for entry in [*wanted, *detectron2_wheel.RUNTIME_REQUIREMENTS]:
            requirement = Requirement(entry)
            (pin,) = [
                p
                for p in pins[canonicalize_name(requirement.name)]
                if not p.marker or p.marker.evaluate({"python_version": version})
            ]
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), entry
