"""Detectors that Detectron2 lacks; importing this registers them as META_ARCHs."""

from kd_d2.modeling.detectors.atss import ATSS, add_atss_config
from kd_d2.modeling.detectors.atss_head import ATSSHead
from kd_d2.modeling.detectors.fcos import FCOS, add_fcos_config
from kd_d2.modeling.detectors.fcos_head import FCOSHead

__all__ = ["ATSS", "FCOS", "ATSSHead", "FCOSHead", "add_atss_config", "add_fcos_config"]
