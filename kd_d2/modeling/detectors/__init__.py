"""Detectors that Detectron2 lacks; importing this registers them as META_ARCHs."""

from detectron2.config import CfgNode

from kd_d2.modeling.detectors.atss import ATSS, add_atss_config
from kd_d2.modeling.detectors.atss_head import ATSSHead
from kd_d2.modeling.detectors.auto_assign import AutoAssign, add_auto_assign_config
from kd_d2.modeling.detectors.auto_assign_head import AutoAssignHead
from kd_d2.modeling.detectors.ddod import DDOD, add_ddod_config
from kd_d2.modeling.detectors.ddod_head import DDODHead
from kd_d2.modeling.detectors.fcos import FCOS, add_fcos_config
from kd_d2.modeling.detectors.fcos_head import FCOSHead
from kd_d2.modeling.detectors.gfl import GFL, add_gfl_config
from kd_d2.modeling.detectors.gfl_head import GFLHead
from kd_d2.modeling.detectors.paa import PAA, add_paa_config
from kd_d2.modeling.detectors.paa_head import PAAHead

__all__ = [
    "ATSS",
    "DDOD",
    "FCOS",
    "GFL",
    "PAA",
    "ATSSHead",
    "AutoAssign",
    "AutoAssignHead",
    "DDODHead",
    "FCOSHead",
    "GFLHead",
    "PAAHead",
    "add_atss_config",
    "add_auto_assign_config",
    "add_ddod_config",
    "add_detector_configs",
    "add_fcos_config",
    "add_gfl_config",
    "add_paa_config",
]


# Theirs below MODEL
NODES = ("FCOS", "ATSS", "GFL", "AUTOASSIGN", "DDOD", "PAA")


def add_detector_configs(cfg: CfgNode) -> None:
    """Adds the node of each of these detectors to a config, in place."""
    for add_config in (
        add_fcos_config,
        add_atss_config,
        add_gfl_config,
        add_auto_assign_config,
        add_ddod_config,
        add_paa_config,
    ):
        add_config(cfg)
