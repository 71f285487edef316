"""Pseudo labels: teachers label images without labels, and a student is trained on them.

Importing this package makes exported labels known as data sets, ``pseudo_labels:<folder>``, and
people's labels completed by them, ``relabeled:<file>``. ``training`` runs all phases for train_net.
``projects/PseudoLabel/README.md`` explains method, stages and files.
"""

from .config import add_pseudo_label_config, check_pseudo_label_config
from .relabeled import View, read_view, register_relabeled, write_view
from .trained_on import exported_classes, register_exported

__all__ = [
    "View",
    "add_pseudo_label_config",
    "check_pseudo_label_config",
    "exported_classes",
    "read_view",
    "register_exported",
    "register_relabeled",
    "write_view",
]
