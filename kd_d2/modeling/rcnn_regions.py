"""How a two-stage detector sees regions of an image."""

from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING

from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from torch import nn

from kd_d2.modeling.regions import RegionReader, Regions, RegionSettings, SeenRegions
from kd_d2.modeling.regions.choosing import Candidates
from kd_d2.modeling.taps import captured_taps
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest

if TYPE_CHECKING:
    from kd_d2.modeling.stages import DetectorStages


class RCNNRegionReader(RegionReader):
    """Of a two-stage detector. Its own regions are its sampled proposals.

    Of a cascade, those of the first of its stages, and that stage's box head.
    """

    def __init__(self, stages: "DetectorStages", settings: RegionSettings, role: str):
        super().__init__(stages, settings, role)
        self.roi_heads: nn.Module = stages.detector.roi_heads
        parts = ("box_pooler", "box_head", "box_predictor", "box_in_features")
        if not all(hasattr(self.roi_heads, part) for part in parts):
            raise ValueError(
                f"regions are read from a box pooler and a box head, and "
                f"{type(self.roi_heads).__name__} has none of its own: set MODEL.ROI_HEADS.NAME to "
                "StandardROIHeads or CascadeROIHeads."
            )
        first = ".0" if isinstance(self.roi_heads.box_head, nn.ModuleList) else ""
        self._head, self._predictor = (
            f"roi_heads.box_head{first}",
            f"roi_heads.box_predictor{first}",
        )
        self._layer = self._last_linear()

    def _last_linear(self) -> str | None:
        layers = self.stages.detector.get_submodule(self._head).named_modules()
        names = [name for name, layer in layers if isinstance(layer, nn.Linear)]
        return f"{self._head}.{names[-1]}" if names else None

    def why_not(self, what: Set[str]) -> str:
        if self.reads_own and self.roi_heads.train_on_pred_boxes:
            return (
                "it reads the boxes that the box head was given, and "
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES replaces them: set it to False"
            )
        if "vectors" in what and self._layer is None:
            return (
                f"it reads the last fully connected layer of the box head, and that of this "
                f"{self.name} has none: set MODEL.ROI_BOX_HEAD.NUM_FC"
            )
        return ""

    @property
    def levels(self) -> list[str]:
        return list(self.roi_heads.box_in_features)

    @property
    def pooler(self) -> ROIPooler:
        """Its own."""
        return self.roi_heads.box_pooler

    @property
    def predictor(self) -> nn.Module:
        """What makes class logits and deltas of a vector."""
        return self.stages.detector.get_submodule(self._predictor)

    @property
    def vector_size(self) -> int:
        """Numbers of a vector."""
        return self.stages.detector.get_submodule(self._layer).out_features

    @property
    def reads_own(self) -> bool:
        """It is trained on the regions, and sees on its way what is asked for."""
        return self.chooses and self.role == "student"

    def _taps(self, what: Set[str]) -> tuple[str, ...]:
        taps = {"vectors": self._layer, "predictions": self._predictor}
        return tuple(tap for word, tap in taps.items() if word in what)

    def request(self, what: Set[str]) -> ViewRequest:
        if self.reads_own:
            return ViewRequest(Stage.ASSIGNMENT, self._taps(what))
        return ViewRequest(Stage.PREDICTIONS) if self.chooses else ViewRequest()

    def own(self, view: DetectorView, gt: list[Instances], what: Set[str]) -> SeenRegions:
        sampled = view.assignment
        regions = Regions.of_images(
            [x.proposal_boxes.tensor for x in sampled],
            [(x.gt_classes >= 0) & (x.gt_classes < self.stages.num_classes) for x in sampled],
        )
        seen = self._seen(regions, {tap: view.taps[tap][0] for tap in self._taps(what)})
        return _of_foreground(seen) if self.settings.subset == "foreground" else seen

    def candidates(self, view: DetectorView) -> list[Candidates]:
        return [Candidates(x.proposal_boxes.tensor) for x in view.predictions.instances]

    def read(self, view: DetectorView, regions: Regions, what: Set[str]) -> SeenRegions:
        detector = self.stages.detector
        # float32, as boxes would be rounded to whole pixels in half precision
        features = [view.features[f].float() for f in self.levels]
        pooled = self.pooler(features, regions.per_image())
        taps = {name: name for name in self._taps(what)}
        with captured_taps(detector, taps) as outputs:
            if taps:
                hidden = detector.get_submodule(self._head)(pooled)
            if "predictions" in what:
                self.predictor(hidden)
        seen = self._seen(regions, {tap: output for tap, (output,) in outputs.items()})
        if "pooled" in what:
            seen.pooled, seen.strides = pooled, self.strides_of(regions)
        return seen

    def _seen(self, regions: Regions, outputs: dict) -> SeenRegions:
        logits, deltas = outputs.get(self._predictor, (None, None))
        return SeenRegions(
            regions,
            vectors=outputs.get(self._layer),
            logits=logits,
            deltas=None if deltas is None else deltas.unflatten(1, (-1, 4)),
        )


def _of_foreground(seen: SeenRegions) -> SeenRegions:
    keep = seen.regions.foreground
    rows = ("vectors", "logits", "deltas")
    values = {name: getattr(seen, name) for name in rows}
    kept = {name: None if x is None else x[keep] for name, x in values.items()}
    return replace(seen, regions=seen.regions.of_foreground(), **kept)
