"""How a detector of a family sees regions of an image, its own ones and those of others.

Words for what there is to see: ``boxes`` (the regions themselves), ``pooled``, ``vectors`` and
``predictions`` (``logits`` and ``deltas``), see :class:`SeenRegions`.
"""

from collections.abc import Set
from functools import cached_property
from typing import TYPE_CHECKING

from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Instances
from torch import Tensor

from kd_d2.modeling.regions.choosing import Candidates, RegionSettings, sample_regions
from kd_d2.modeling.regions.seen import Regions, SeenRegions
from kd_d2.modeling.views import DetectorView, ViewRequest

if TYPE_CHECKING:
    from kd_d2.modeling.stages import DetectorStages


class RegionReader:
    """Base, which pools from the features of any detector. A family's stages make their own.

    Attributes:
        stages: of the detector.
        settings: which regions, and how they are pooled.
        role: "student" or "teacher".
        chooses: the regions are this detector's own.
    """

    def __init__(self, stages: "DetectorStages", settings: RegionSettings, role: str):
        self.stages = stages
        self.settings = settings
        self.role = role
        self.chooses = settings.source == role

    @property
    def name(self) -> str:
        """Of the detector, for messages."""
        return type(self.stages.detector).__name__

    def why_not(self, what: Set[str]) -> str:
        """Why this cannot be seen here; "" if it can."""
        if self.chooses:
            return (
                f"the regions are to be the {self.role}'s (MODEL.KD.REGIONS.SOURCE), and the "
                f"family of {self.name} has none"
            )
        return self._why_no_box_head(what & {"vectors", "predictions"})

    def _why_no_box_head(self, read: Set[str]) -> str:
        if not read:
            return ""
        return (
            f"it reads what the {self.role}'s box head makes of a region, and a {self.name} has "
            "none: take an R-CNN, or the head SGFI"
        )

    @property
    def channels(self) -> int:
        """Of the pooled features.

        Raises:
            ValueError: levels differ.
        """
        channels = {self.stages.feature_shapes[f].channels for f in self.levels}
        if len(channels) > 1:
            raise ValueError(
                f"regions are pooled from one level each, and those of this {self.name} have "
                f"unequal numbers of channels ({', '.join(map(str, sorted(channels)))})."
            )
        return channels.pop()

    @property
    def levels(self) -> list[str]:
        """The levels that are pooled from, from fine to coarse."""
        return list(self.stages.feature_shapes)

    @cached_property
    def pooler(self) -> ROIPooler:
        """What pools the features of a region.

        Raises:
            ValueError: the levels are no pyramid.
        """
        return self.make_pooler(self.settings.pooler_resolution)

    def make_pooler(self, resolution: int) -> ROIPooler:
        """A box pooler: the level of a box is that of the FPN paper (1612.03144, eq. 1).

        224 pixels belong to stride 16; clamped to the levels that there are.

        Raises:
            ValueError: the levels are no pyramid.
        """
        shapes = self.stages.feature_shapes
        try:
            return ROIPooler(
                resolution,
                [1 / shapes[f].stride for f in self.levels],
                self.settings.pooler_sampling_ratio,
                "ROIAlignV2",
            )
        except AssertionError as error:
            raise ValueError(f"regions cannot be pooled from this {self.name}: {error}.") from None

    @property
    def resolution(self) -> int:
        """Height and width of the pooled features.

        Raises:
            ValueError: they differ.
        """
        size = set(self.pooler.output_size)
        if len(size) > 1:
            raise ValueError(
                f"regions are compared as squares, and this {self.name} pools to "
                f"{self.pooler.output_size}."
            )
        return size.pop()

    def request(self, what: Set[str]) -> ViewRequest:
        """What a run of the detector must leave behind so that this can be read."""
        return ViewRequest()

    def own(self, view: DetectorView, gt: list[Instances], what: Set[str]) -> SeenRegions:
        """The detector's own regions of this run, and what it saw there on its way.

        Not ``pooled``: a student's features are a head's to pool, as it needs them.
        """
        raise NotImplementedError

    def candidates(self, view: DetectorView) -> list[Candidates]:
        """Of each image, what regions for another detector are sampled from."""
        raise NotImplementedError

    def choose(self, view: DetectorView, gt: list[Instances]) -> Regions:
        """A sample of the detector's candidates, of which this run made nothing yet."""
        return self._subset(sample_regions(self.candidates(view), gt, self.settings))

    def read(self, view: DetectorView, regions: Regions, what: Set[str]) -> SeenRegions:
        """What the detector sees in given regions."""
        seen = SeenRegions(regions)
        if "pooled" in what:
            features = [view.features[f].float() for f in self.levels]
            seen.pooled = self.pooler(features, regions.per_image())
            seen.strides = self.strides_of(regions)
        return seen

    def strides_of(self, regions: Regions) -> Tensor:
        """(R,) strides of the levels that a box pooler takes for these boxes."""
        pooler = self.pooler
        if len(regions) == 0:
            return regions.boxes.new_zeros(0)
        levels = assign_boxes_to_levels(
            regions.per_image(),
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        return 2.0 ** (levels + pooler.min_level)

    def _subset(self, regions: Regions) -> Regions:
        return regions.of_foreground() if self.settings.subset == "foreground" else regions
