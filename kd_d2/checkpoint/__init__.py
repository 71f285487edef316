"""Reading and writing weights: atomic files, safe reading, and names moved between kinds of models.

This room knows state dicts only; it imports neither ``kd_d2.engine`` nor ``kd_d2.modeling``.
"""

from .atomic import atomic_write, earlier_file_kept, file_sha256
from .checkpointer import KDCheckpointer
from .class_rows import ClassLists
from .detector_weights import WeightsReport, load_detector_weights
from .names import is_distillation_state, peer_state, student_state
from .reading import CheckpointError, local_weights_path, read_checkpoint

__all__ = [
    "CheckpointError",
    "ClassLists",
    "KDCheckpointer",
    "WeightsReport",
    "atomic_write",
    "earlier_file_kept",
    "file_sha256",
    "is_distillation_state",
    "load_detector_weights",
    "local_weights_path",
    "peer_state",
    "read_checkpoint",
    "student_state",
]
