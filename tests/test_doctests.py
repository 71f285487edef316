"""Every example in a docstring of the package and of the projects holds."""

import doctest
import importlib
import pkgutil

import pytest

import kd_d2
from kd_d2.projects import PROJECTS


def _modules():
    packages = [kd_d2] + [importlib.import_module(f"kd_d2.projects.{p}") for p in PROJECTS]
    for package in packages:
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                yield module.name


@pytest.mark.parametrize("name", sorted(set(_modules())))
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples():
    counted = sum(
        len(test.examples)
        for name in set(_modules())
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
    )
    assert counted >= 10
