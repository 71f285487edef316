"""Build script of kd_d2. Imports neither torch nor Detectron2: a plain `pip install -e .` works."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def version() -> str:
    text = (ROOT / "kd_d2" / "__init__.py").read_text()
    return re.search(r'^__version__ = "([^"]+)"', text, re.M).group(1)


def project_packages() -> dict[str, str]:
    """``projects/LGD/lgd`` is the package ``kd_d2.projects.lgd``, and so is every other project."""
    packages = {}
    for init in sorted(ROOT.glob("projects/*/*/__init__.py")):
        top = init.parent
        if not top.name.islower():
            continue
        name = f"kd_d2.projects.{top.name}"
        packages[name] = str(top.relative_to(ROOT))
        for sub in find_packages(str(top)):
            packages[f"{name}.{sub}"] = str((top / sub.replace(".", "/")).relative_to(ROOT))
    return packages


class BuildWithConfigs(build_py):
    """Copies ``configs/`` to ``kd_d2/model_zoo/configs``, where an installed kd_d2 looks for it."""

    def run(self):
        super().run()
        if not self.editable_mode:  # a checkout reads its own configs/
            target = Path(self.build_lib, "kd_d2", "model_zoo", "configs")
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True)


PROJECTS = project_packages()

setup(
    name="kd_d2",
    version=version(),
    description="Knowledge distillation for any Detectron2 detector",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["kd_d2", "kd_d2.*"]) + list(PROJECTS),
    package_dir=PROJECTS,
    package_data={"kd_d2.model_zoo": ["zoo.yaml"]},
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.10",
    # Detectron2 is needed, too, and is not listed: it has no release that pip could find by name.
    # tools/install_detectron2.py installs it; importing kd_d2 without it says so.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.24",
        "pillow>=9.5",
        "matplotlib>=3.7",
        "pycocotools>=2.0.6",
        "pyyaml>=6.0",
        "scipy>=1.10",  # CrowdHuman's metrics match boxes by it
        "fvcore>=0.1.5.post20221221,<0.1.6",
        "iopath>=0.1.9,<0.1.11",
        "portalocker>=2.0",
        "tqdm>=4.60",
        "gdown>=6.5,<7",  # files of the model zoo that lie in Google Drive
        # Detectron2's visualiser imports cv2. The plain opencv-python wheel wants libGL and
        # libgthread from the system, which a bare server lacks; the headless one wants nothing.
        "opencv-python-headless>=4.7",
    ],
    extras_require={
        "test": [
            "pytest>=7.4",
            "pytest-xdist>=3.3",
            "hypothesis>=6.80",
            "ruff>=0.9",
            "scikit-learn>=1.3",  # whose mixture fit PAA's is compared with
        ],
    },
)
