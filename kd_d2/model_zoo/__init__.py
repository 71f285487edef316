"""From a name to a config file and its weights: ours, Detectron2's, or the user's own.

Importing this makes ``kd_d2://`` known to Detectron2's PathManager.
"""

from kd_d2.model_zoo.files import add_file, cached_file, get_file, is_fetched_here, local_file
from kd_d2.model_zoo.handler import register_handler
from kd_d2.model_zoo.names import resolve_config_file, resolve_weights
from kd_d2.model_zoo.table import ZooEntry, ZooError, check_weights_name, entries, find

register_handler()

__all__ = [
    "ZooEntry",
    "ZooError",
    "add_file",
    "cached_file",
    "check_weights_name",
    "entries",
    "find",
    "get_file",
    "is_fetched_here",
    "local_file",
    "resolve_config_file",
    "resolve_weights",
]
