"""What messages call a setting is what users can set."""

import pytest

from kd_d2 import get_kd_cfg
from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.command_line import build_parser
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.filters import RULES, FilterSettings
from kd_d2.projects.pseudo_label.setting_names import NAMES, called


@pytest.mark.parametrize("setting", NAMES)
def test_there_are_such_keys_and_options(setting):
    key, option = NAMES[setting]
    node = get_kd_cfg()
    for part in key.split("."):
        assert part in node
        node = node[part]
    parser = build_parser("")
    [stages] = [x.choices for x in parser._actions if x.choices]
    assert option in stages["all"]._option_string_actions


def test_every_filter_has_a_name():
    assert all(called(key) != key for key in vars(FilterSettings()))
    assert RULES.keys() == vars(FilterSettings()).keys()


@pytest.mark.parametrize("key", RULES)
@pytest.mark.parametrize("value", [None, 0, 0.5, 1, 2, 13, -1, float("nan"), "auto", True])
def test_configs_and_the_command_line_take_the_same_values(key, value):
    def takes(check):
        try:
            check()
        except ConfigError:
            return False
        return True

    cfg = get_kd_cfg()
    cfg.PSEUDO_LABEL.FILTER[key.upper()] = value
    by_config = takes(lambda: check_pseudo_label_config(cfg))
    assert by_config == takes(lambda: FilterSettings(**{key: value}))


@pytest.mark.parametrize("key", ["t_ignore", "duplicate_iou"])
def test_a_share_of_0_is_no_share(key):
    with pytest.raises(ConfigError, match=f"{key.upper()} .* is 0; it must be a number above 0"):
        FilterSettings(**{key: 0})
