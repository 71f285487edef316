"""kd_d2: knowledge distillation for any Detectron2 detector."""

__version__ = "0.1.0"

from kd_d2._compat import ensure_pkg_resources, require_detectron2

require_detectron2()
ensure_pkg_resources()

from kd_d2 import modeling  # noqa: E402, F401  (registers stages, teachers, heads, detectors)
from kd_d2.config import add_kd_config, get_kd_cfg  # noqa: E402
from kd_d2.data import builtin as _builtin_data  # noqa: E402, F401  (registers the data sets)
from kd_d2.projects import register_projects  # noqa: E402

register_projects()

__all__ = ["__version__", "add_kd_config", "get_kd_cfg"]
