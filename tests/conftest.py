"""Fixtures that every test can use; what they build is in ``tiny_models.py``."""

from functools import partial

import pytest
import tiny_models
import torch
from detectron2.utils.events import EventStorage


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def storage():
    """An open EventStorage: Detectron2's detectors log from inside their losses."""
    with EventStorage(0) as storage:
        yield storage


@pytest.fixture
def tiny_cfg():
    return tiny_models.tiny_cfg


@pytest.fixture
def lgd_cfg():
    return tiny_models.lgd_cfg


@pytest.fixture
def build():
    return tiny_models.build


@pytest.fixture
def random_batch():
    return tiny_models.random_batch


@pytest.fixture
def teacher_files(tmp_path):
    """Writes config and weights of a tiny detector: arch -> (yaml, pth)."""
    return partial(tiny_models.teacher_files, tmp_path)


@pytest.fixture
def frozen_cfg(tmp_path):
    """A tiny student that learns from a tiny frozen teacher by PKD."""
    return partial(tiny_models.frozen_cfg, tmp_path)
