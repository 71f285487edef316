"""ImageNet weights of torchvision's classifiers, for the backbone of a detector.

Detectron2's model zoo has no MobileNet and no ResNet-18 or -34. Names are matched exactly: every
weight of the backbone is in the file, or the file is of another model.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .reading import CheckpointError

__all__ = ["MOBILENET_V2", "RESNET", "TorchvisionClassifier"]

logger = logging.getLogger(__name__)

_COUNTER = "num_batches_tracked"


def detectron2_name(name: str) -> str:
    """What Detectron2's ResNet calls a weight of torchvision's.

    >>> [detectron2_name(name) for name in ("bn1.bias", "layer2.0.downsample.1.running_mean")]
    ['stem.conv1.norm.bias', 'res3.0.shortcut.norm.running_mean']
    """
    if name.startswith("fc."):
        return name
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return re.sub(r"\bbn(\d)", r"conv\1.norm", name)


@dataclass(frozen=True)
class TorchvisionClassifier:
    """A family of torchvision's classifiers.

    Attributes:
        name: for messages.
        signature: weights that a file of the family has, and no other.
        first: what the detector calls its first weight, behind the name of the backbone.
        parts: beginnings of the names that make the backbone in the detector.
        rename: torchvision's name -> the detector's, behind the name of the backbone.
        whole: a file with more blocks than a part of the detector has is of another model.
        advice: settings to look at.
        format: what images and layers these weights are for.
    """

    name: str
    signature: frozenset[str]
    first: str
    parts: tuple[str, ...]
    rename: Callable[[str], str]
    whole: bool
    advice: str
    format: str = "RGB images with torchvision's mean and deviation"

    def wrote(self, names: Iterable[str]) -> bool:
        """Whether these are the names of such a classifier.

        >>> RESNET.wrote(["conv1.weight", "bn1.weight", "layer4.1.conv2.weight", "fc.weight"])
        True
        >>> MOBILENET_V2.wrote(["features.0.0.weight", "features.18.0.weight"])
        False
        """
        return self.signature <= set(names)

    def convert(
        self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
    ) -> "OrderedDict[str, Tensor]":
        """Give the classifier's weights the names of a detector's backbone.

        Args:
            weights: name -> tensor, of torchvision.
            own: state dict of a plain detector (or of a bare backbone).
            source: the file, for messages.

        Returns:
            New state dict with names of ``own``.

        Raises:
            CheckpointError: the detector has no such backbone, or one of another size.
        """
        prefix = next((n[: -len(self.first)] for n in own if n.endswith(self.first)), None)
        if prefix is None:
            raise CheckpointError(
                f"'{source}' holds a {self.name}, and this config's model has none: set "
                f"MODEL.BACKBONE.NAME to one{self.advice}, or give MODEL.WEIGHTS of the model's "
                "own backbone."
            )
        wanted = [
            name
            for name in own
            if name.startswith(tuple(prefix + part for part in self.parts))
            and not name.endswith(_COUNTER)
        ]
        renamed = {prefix + self.rename(name): value for name, value in weights.items()}
        given = {name: value for name, value in renamed.items() if name in own}
        unfit = [n for n in wanted if n not in given or given[n].shape != own[n].shape]
        if self.whole:
            # a norm that is frozen counts no batches
            stages = tuple({_stage(name, prefix) for name in wanted})
            unfit += [
                name
                for name in renamed
                if name.startswith(stages) and name not in own and not name.endswith(_COUNTER)
            ]
        if unfit:
            raise CheckpointError(
                f"'{source}' does not fit the {self.name} of this config: {len(unfit)} weights are "
                f"missing on one side, or of another shape ({', '.join(unfit[:3])})."
            )
        logger.info(
            "'%s' is torchvision's %s: %d weights for the backbone; dropped the classifier. They "
            "are for %s.",
            source,
            self.name,
            len(wanted),
            self.format,
        )
        return OrderedDict(given)


def _stage(name: str, prefix: str) -> str:
    return prefix + name[len(prefix) :].partition(".")[0] + "."


MOBILENET_V2 = TorchvisionClassifier(
    name="MobileNetV2",
    signature=frozenset({"features.0.0.weight", "features.18.0.weight", "classifier.1.weight"}),
    first="features.0.0.weight",
    parts=("features.",),
    rename=str,
    whole=False,
    advice=" (see configs/backbones/MobileNetV2.yaml)",
)
RESNET = TorchvisionClassifier(
    name="ResNet",
    signature=frozenset({"conv1.weight", "bn1.weight", "layer4.1.conv2.weight", "fc.weight"}),
    first="stem.conv1.weight",
    parts=("stem.", "res"),
    rename=detectron2_name,
    whole=True,
    advice=" (MODEL.RESNETS.DEPTH says which)",
    format=(
        "RGB images with torchvision's mean and deviation and, from ResNet-50 on, for "
        "MODEL.RESNETS.STRIDE_IN_1X1 False"
    ),
)
