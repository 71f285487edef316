"""Heads of single papers that work for every pair of detectors; importing this registers them."""

from kd_d2.modeling.heads.config import HEAD_VALUES, add_head_config
from kd_d2.modeling.heads.cross_kd import CrossKD
from kd_d2.modeling.heads.cwd import CWD
from kd_d2.modeling.heads.dkd import DKD
from kd_d2.modeling.heads.fgd import FGD
from kd_d2.modeling.heads.fgfi import FGFI
from kd_d2.modeling.heads.mgd import MGD
from kd_d2.modeling.heads.pkd import PKD
from kd_d2.modeling.heads.soft_label import SoftLabel

__all__ = [
    "CWD",
    "DKD",
    "FGD",
    "FGFI",
    "HEAD_VALUES",
    "MGD",
    "PKD",
    "CrossKD",
    "SoftLabel",
    "add_head_config",
]
