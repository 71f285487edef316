"""Labels that weigh differently, and objects that nobody is sure of, for every detector."""

from .attached import Attached
from .matching import BOX_WEIGHTS, CLS_WEIGHTS, IGNORED, has_weights, on_uncertain, weights_of
from .settings import LabelWeights
from .weigh import weigh_labels

__all__ = [
    "BOX_WEIGHTS",
    "CLS_WEIGHTS",
    "IGNORED",
    "Attached",
    "LabelWeights",
    "has_weights",
    "on_uncertain",
    "weigh_labels",
    "weights_of",
]
