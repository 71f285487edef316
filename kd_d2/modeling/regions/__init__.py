"""Regions of images that student and teacher both look at: which, and what either sees there."""

from kd_d2.modeling.regions.choosing import RegionSettings
from kd_d2.modeling.regions.comparison import RegionComparison
from kd_d2.modeling.regions.config import REGION_VALUES, add_region_config
from kd_d2.modeling.regions.readers import RegionReader
from kd_d2.modeling.regions.seen import Regions, SeenRegions

__all__ = [
    "REGION_VALUES",
    "RegionComparison",
    "RegionReader",
    "RegionSettings",
    "Regions",
    "SeenRegions",
    "add_region_config",
]
