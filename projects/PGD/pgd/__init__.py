"""PGD: prediction-guided distillation for dense object detection (arXiv 2203.05469).

Importing this package registers the distillation head ``PGD``. ``projects/PGD/README.md`` explains
the method and the files.
"""

from .config import add_pgd_config, check_pgd_config
from .head import PGD
from .key_locations import gaussian_weights, select_key_locations
from .losses import cls_loss, reg_loss
from .maps import PredictionGuidedMaps, prediction_guided_maps

__all__ = [
    "PGD",
    "PredictionGuidedMaps",
    "add_pgd_config",
    "check_pgd_config",
    "cls_loss",
    "gaussian_weights",
    "prediction_guided_maps",
    "reg_loss",
    "select_key_locations",
]
