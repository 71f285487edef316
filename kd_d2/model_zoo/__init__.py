"""From a name to a config file and its weights: ours, Detectron2's, or the user's own."""

from kd_d2.model_zoo.names import is_zoo_config, resolve_config_file, resolve_weights

__all__ = ["is_zoo_config", "resolve_config_file", "resolve_weights"]
