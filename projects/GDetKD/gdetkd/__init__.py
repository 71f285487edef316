"""G-DetKD: semantic-guided and contrastive imitation of regions (arXiv 2108.07482).

Importing this package registers the distillation heads ``SGFI``, ``CKD``, ``RoIClassKD`` and
``RoIBoxKD``. ``projects/GDetKD/README.md`` explains the method and the files.
"""

from .ckd import CKD
from .config import add_gdetkd_config, check_gdetkd_config
from .contrast import contrastive_logits, contrastive_loss, overlapping
from .matching import aggregate_levels, imitation_error, level_weights
from .predictions import class_aware_box_loss, class_loss
from .roi_predictions import RoIBoxKD, RoIClassKD
from .sgfi import SGFI

__all__ = [
    "CKD",
    "SGFI",
    "RoIBoxKD",
    "RoIClassKD",
    "add_gdetkd_config",
    "aggregate_levels",
    "check_gdetkd_config",
    "class_aware_box_loss",
    "class_loss",
    "contrastive_logits",
    "contrastive_loss",
    "imitation_error",
    "level_weights",
    "overlapping",
]
