"""Labels that weigh differently, and what nobody is sure of or has looked for, of any detector."""

from .attached import Attached
from .covered import COVERED
from .matching import BOX_WEIGHTS, CLS_WEIGHTS, IGNORED, has_weights, on_uncertain, weights_of
from .settings import LabelWeights
from .weigh import weigh_labels

__all__ = [
    "BOX_WEIGHTS",
    "CLS_WEIGHTS",
    "COVERED",
    "IGNORED",
    "Attached",
    "LabelWeights",
    "has_weights",
    "on_uncertain",
    "weigh_labels",
    "weights_of",
]
