"""ImageNet weights of torchvision's MobileNetV2, for the backbone of a detector.

Names agree but for a prefix, so they are matched exactly: every weight of the backbone is in the
file, or the file is of another model.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor

from .reading import CheckpointError

__all__ = ["convert_mobilenet_release", "is_mobilenet_release"]

logger = logging.getLogger(__name__)

_STEM = "features.0.0.weight"
_COUNTER = ".num_batches_tracked"


def is_mobilenet_release(names: Iterable[str]) -> bool:
    """Whether these are the names of torchvision's MobileNetV2 classifier.

    >>> is_mobilenet_release(["features.0.0.weight", "features.18.0.weight", "classifier.1.weight"])
    True
    """
    return {_STEM, "features.18.0.weight", "classifier.1.weight"} <= set(names)


def convert_mobilenet_release(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
) -> "OrderedDict[str, Tensor]":
    """Give the classifier's weights the names of a detector's backbone.

    Args:
        weights: name -> tensor, of torchvision.
        own: state dict of a plain detector (or of a bare backbone).
        source: the file, for messages.

    Returns:
        New state dict with names of ``own``.

    Raises:
        CheckpointError: the detector has no such backbone, or one of another width.
    """
    prefix = next((name[: -len(_STEM)] for name in own if name.endswith(_STEM)), None)
    if prefix is None:
        raise CheckpointError(
            f"'{source}' holds a MobileNetV2, and this config's model has none: set "
            "MODEL.BACKBONE.NAME to one (see configs/backbones/MobileNetV2.yaml), or give "
            "MODEL.WEIGHTS of the model's own backbone."
        )
    wanted = [
        name for name in own if name.startswith(f"{prefix}features.") and _COUNTER not in name
    ]
    # a norm that is frozen counts no batches
    given = {f"{prefix}{name}": v for name, v in weights.items() if f"{prefix}{name}" in own}
    unfit = [n for n in wanted if n not in given or given[n].shape != own[n].shape]
    if unfit:
        raise CheckpointError(
            f"'{source}' does not fit the MobileNetV2 of this config: {len(unfit)} of its weights "
            f"are missing in it or of another shape ({', '.join(unfit[:3])})."
        )
    logger.info(
        "'%s' is torchvision's MobileNetV2: %d weights for the backbone; dropped the classifier.",
        source,
        len(wanted),
    )
    return OrderedDict(given)
