"""What one run of a detector leaves behind, and how much of it somebody asked for."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from detectron2.structures import ImageList
from torch import Tensor

from kd_d2.modeling.dense_predictions import DensePredictions

if TYPE_CHECKING:
    from kd_d2.modeling.regions import SeenRegions
    from kd_d2.modeling.stages import DetectorStages


class Stage(IntEnum):
    """How far a detector is run. Every stage includes those before it."""

    FEATURES = 1
    PREDICTIONS = 2
    ASSIGNMENT = 3
    LOSSES = 4


@dataclass(frozen=True)
class ViewRequest:
    """What a distillation head needs to see of one side.

    Attributes:
        stage: the last stage that must have run.
        taps: what is to be kept on the way: names of submodules of the detector, e.g.
            ``"roi_heads.box_head"``, or words that its stages know, see
            ``DetectorStages.resolve_tap``.
        decoded: give the predictions as :class:`DensePredictions`, too; needs PREDICTIONS.
        regions: what to see in regions that both sides look at, in the words of
            ``regions/readers.py``; the distiller knows what must run for that.
    """

    stage: Stage = Stage.FEATURES
    taps: tuple[str, ...] = ()
    decoded: bool = False
    regions: frozenset[str] = frozenset()

    def __or__(self, other: "ViewRequest") -> "ViewRequest":
        """The smallest request that satisfies both."""
        return ViewRequest(
            max(self.stage, other.stage),
            tuple(dict.fromkeys(self.taps + other.taps)),
            self.decoded or other.decoded,
            self.regions | other.regions,
        )


@dataclass
class DetectorView:
    """One run of a detector (or of a teacher that imitates one) on one batch.

    N is the number of images, l a pyramid level with C channels and H_l x W_l cells.

    Attributes:
        images: the padded, normalised batch of this detector, ``tensor`` (N, 3, H, W).
        features: level name -> (N, C, H_l, W_l), ordered from fine to coarse.
        predictions: what the detector's ``predict`` stage returned, in its own format.
        assignment: which prediction is to learn which object, in its own format.
        losses: name -> scalar.
        taps: the name asked for -> outputs, one entry a call (a head shared by five levels is
            called five times).
        decoded: the predictions in the words of all dense detectors.
        regions: what it sees in the regions that are compared.
        stages: the detector itself, for heads that let a frozen teacher judge what the student
            made; None on a student's view.
    """

    images: ImageList
    features: dict[str, Tensor]
    predictions: Any = None
    assignment: Any = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    taps: dict[str, list] = field(default_factory=dict)
    decoded: DensePredictions | None = None
    regions: "SeenRegions | None" = None
    stages: "DetectorStages | None" = None
