"""Stages, teachers, distillation heads, and the meta-architectures that wire them."""

from kd_d2.modeling import (  # noqa: F401  (importing registers what is in them)
    backbones,
    dense_stages,
    detectors,
    heads,
    rcnn_stages,
)
from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY, DistillHead
from kd_d2.modeling.meta_arch import (
    Distiller,
    FrozenTeacherDistiller,
    LabelGuidedDistiller,
)
from kd_d2.modeling.stages import DetectorStages, build_stages, register_stages
from kd_d2.modeling.teachers import TEACHER_REGISTRY, FrozenTeacher
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest

__all__ = [
    "DISTILL_HEAD_REGISTRY",
    "TEACHER_REGISTRY",
    "DetectorStages",
    "DetectorView",
    "DistillHead",
    "Distiller",
    "FrozenTeacher",
    "FrozenTeacherDistiller",
    "LabelGuidedDistiller",
    "Stage",
    "ViewRequest",
    "build_stages",
    "register_stages",
]
