"""The config: its keys, the files it is read from, and the checks of what they say."""

from kd_d2.config.defaults import add_kd_config, get_kd_cfg

__all__ = ["add_kd_config", "get_kd_cfg"]
