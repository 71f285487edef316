"""How a dense detector sees regions of an image."""

from collections.abc import Set

import torch
from detectron2.structures import Instances

from kd_d2.modeling.regions import RegionReader, SeenRegions
from kd_d2.modeling.regions.choosing import Candidates, class_max_candidates
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest


class DenseRegionReader(RegionReader):
    """Of a dense detector. Its own regions are predicted boxes that know their locations."""

    _TOWER = "cls_tower.last"

    def why_not(self, what: Set[str]) -> str:
        if reason := self._why_no_box_head(what & {"predictions"}):
            return reason
        if self.chooses and not self.stages.can_decode():
            return (
                f"it reads boxes of locations, and a {self.name} has no decode_predictions: take "
                "another dense detector"
            )
        if self.role == "teacher":
            return self._why_no_box_head(what & {"vectors"})
        if "vectors" in what and not self.chooses:
            return (
                f"it reads vectors of regions, and a {self.name} has them where its own locations "
                "predict a region: set MODEL.KD.REGIONS.SOURCE to student"
            )
        return ""

    @property
    def per_cell(self) -> int:
        """Anchors of a cell."""
        return self.stages.locations_per_cell()

    @property
    def vector_size(self) -> int:
        """Numbers of a vector: channels of the classification tower."""
        tower = self.stages.detector.get_submodule(
            self.stages.resolve_tap(self._TOWER).rpartition(".")[0]
        )
        # deformable convolutions are no Conv2d
        return next(x.out_channels for x in reversed(list(tower)) if hasattr(x, "out_channels"))

    def request(self, what: Set[str]) -> ViewRequest:
        if not self.chooses:
            return ViewRequest()
        taps = (self._TOWER,) if "vectors" in what else ()
        return ViewRequest(Stage.PREDICTIONS, taps, decoded=True)

    def candidates(self, view: DetectorView) -> list[Candidates]:
        return class_max_candidates(view.decoded, view.images.image_sizes, self.settings)

    def own(self, view: DetectorView, gt: list[Instances], what: Set[str]) -> SeenRegions:
        regions = self.choose(view, gt)
        seen = self.read(view, regions, what)
        if "vectors" in what:
            location = regions.locations.clamp(min=0)
            seen.anchors = location % self.per_cell
            # levels and rows of a tower in the order of the locations
            cells = torch.cat([x.flatten(2) for x in view.taps[self._TOWER]], 2)
            seen.vectors = cells[regions.images, :, location // self.per_cell]
        return seen
