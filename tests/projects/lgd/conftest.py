"""Fixtures of the tests of LGD."""

import pytest
import torch


@pytest.fixture
def build_other(build):
    """A model with other weights than ``build`` gives."""

    def build_other(cfg):
        torch.manual_seed(1)
        return build(cfg)

    return build_other
