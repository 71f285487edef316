"""LAD and CoLAD: label assignment distillation (arXiv 2108.10520).

Importing this package registers the distillation head ``FocalSoftLabel``, the teacher ``Peer`` and
the META_ARCH ``CoLearningDistiller``. ``projects/LAD/README.md`` explains methods and files.
"""

from .co_learning import CoLearningDistiller
from .config import add_lad_config, check_lad_config
from .peer import Peer
from .soft_labels import FocalSoftLabel, focal_kl
from .switching import choose_costs, fisher_score, std_over_mean

__all__ = [
    "CoLearningDistiller",
    "FocalSoftLabel",
    "Peer",
    "add_lad_config",
    "check_lad_config",
    "choose_costs",
    "fisher_score",
    "focal_kl",
    "std_over_mean",
]
