"""Detectors that Detectron2 lacks; importing this registers them as META_ARCHs."""

from kd_d2.modeling.detectors.fcos import FCOS, add_fcos_config
from kd_d2.modeling.detectors.fcos_head import FCOSHead

__all__ = ["FCOS", "FCOSHead", "add_fcos_config"]
