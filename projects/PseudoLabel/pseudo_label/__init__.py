"""Pseudo labels: teachers label images without labels, and a student is trained on them.

Importing this package makes exported labels known as data sets, ``pseudo_labels:<folder>``.
``projects/PseudoLabel/README.md`` explains method, stages and files.
"""

from .trained_on import exported_classes, register_exported

__all__ = ["exported_classes", "register_exported"]
