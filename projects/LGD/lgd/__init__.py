"""LGD: label-guided self-distillation for object detection (arXiv 2109.11496).

Importing this package registers the teacher ``LabelEncoder`` and the distillation head
``InstructiveFeatures``. ``projects/LGD/README.md`` explains the method and the files.
"""

from .config import add_lgd_config, check_lgd_config
from .instructive_features import InstructiveFeatures, instructive_feature_loss
from .official_checkpoint import convert_official
from .standardised_distance import instance_normalize
from .teacher import LabelEncoder

__all__ = [
    "InstructiveFeatures",
    "LabelEncoder",
    "add_lgd_config",
    "check_lgd_config",
    "convert_official",
    "instance_normalize",
    "instructive_feature_loss",
]
