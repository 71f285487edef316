"""The quickstart's trainings with pseudo labels, as train_net.py checks them at the start."""

import pytest
from detectron2.engine import default_argument_parser
from recipe_cases import ROOT, write_teacher

from train_net import read_config

CONFIGS = sorted((ROOT / "configs" / "quickstart").glob("pseudo_label_*.yaml"))


def test_there_are_such_configs():
    assert {x.stem for x in CONFIGS} >= {"pseudo_label_gfl", "pseudo_label_domain_gfl"}


@pytest.mark.parametrize("options", [[], ["PSEUDO_LABEL.LABELED", "[]"]])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda x: x.stem)
def test_all_of_them_can_be_started(config, options, tmp_path):
    teachers = ["PSEUDO_LABEL.TEACHERS", str([write_teacher(tmp_path, "gfl_wide")])]
    command = ["--config-file", str(config), *teachers, *options]
    cfg = read_config(default_argument_parser().parse_args(command))
    assert cfg.PSEUDO_LABEL.TEACHERS
