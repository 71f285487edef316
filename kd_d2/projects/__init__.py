"""The one place that knows all projects.

Each lives in ``projects/<Paper>/<name>`` of the checkout and is importable as
``kd_d2.projects.<name>``, from a checkout and from an installed package alike.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from detectron2.config import CfgNode

# package -> (folder in the checkout, config function, config check)
PROJECTS = {
    "lgd": ("LGD", "add_lgd_config", "check_lgd_config"),
    "pgd": ("PGD", "add_pgd_config", "check_pgd_config"),
    "gdetkd": ("GDetKD", "add_gdetkd_config", "check_gdetkd_config"),
    "lad": ("LAD", "add_lad_config", "check_lad_config"),
    "pseudo_label": ("PseudoLabel", "add_pseudo_label_config", "check_pseudo_label_config"),
}
_ROOT = Path(__file__).resolve().parents[2] / "projects"


class _ProjectsFinder(importlib.abc.MetaPathFinder):
    """Finds the projects of a checkout, where ``package_dir`` of setup.py has no effect."""

    def find_spec(self, name, path=None, target=None):
        parent, _, package = name.rpartition(".")
        if parent != __name__ or package not in PROJECTS:
            return None
        init = _ROOT / PROJECTS[package][0] / package / "__init__.py"
        if not init.is_file():
            return None
        return importlib.util.spec_from_file_location(
            name, init, submodule_search_locations=[str(init.parent)]
        )


if _ROOT.is_dir():
    sys.meta_path.append(_ProjectsFinder())


def register_projects() -> dict[str, ModuleType]:
    """Imports every project, which registers its teachers and heads; package -> module."""
    return {package: importlib.import_module(f"{__name__}.{package}") for package in PROJECTS}


def _each(function: int):
    for package, module in register_projects().items():
        yield getattr(module, PROJECTS[package][function])


def add_project_configs(cfg: CfgNode) -> None:
    """Adds the config node of every project."""
    for add_config in _each(1):
        add_config(cfg)


def check_project_configs(cfg: CfgNode) -> None:
    """Lets every project check its node of a finished config."""
    for check_config in _each(2):
        check_config(cfg)
