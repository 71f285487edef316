"""Teachers: what turns a batch, its ground truth and the student's view into knowledge."""

import hashlib
import logging
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import nn

from kd_d2.checkpoint import load_detector_weights
from kd_d2.modeling.frozen import Frozen
from kd_d2.modeling.regions import Regions, SeenRegions
from kd_d2.modeling.stages import DetectorStages, build_stages
from kd_d2.modeling.views import DetectorView, ViewRequest
from kd_d2.registry import NamedRegistry

logger = logging.getLogger(__name__)

TEACHER_REGISTRY = NamedRegistry("TEACHER", "teacher (MODEL.KD.TEACHER.NAME)")
TEACHER_REGISTRY.__doc__ = """
Registry of teachers.

A teacher is an ``nn.Module`` with ``feature_shapes`` (level name -> ShapeSpec) and
``forward(batched_inputs, gt, student) -> DetectorView``. The registered object is called as
``obj(cfg, student_stages)``.
"""


def build_teacher(cfg: CfgNode, student: DetectorStages) -> nn.Module:
    """Builds ``MODEL.KD.TEACHER.NAME``."""
    return TEACHER_REGISTRY.get(cfg.MODEL.KD.TEACHER.NAME)(cfg, student)


def with_channels(batched_inputs: list[dict], flip: bool) -> list[dict]:
    """The same batch, its images (3, H, W) turned from RGB to BGR or back if they are to be."""
    if not flip:
        return batched_inputs
    return [{**x, "image": x["image"].flip(0)} for x in batched_inputs]


@TEACHER_REGISTRY.register("Frozen")
class FrozenTeacher(nn.Module):
    """Any trained detector. It gives its own view of the same raw images, and never changes.

    Its parameters are not parameters of this module: no optimiser, checkpoint or DDP wrapper
    meets them, and it stays in eval mode whatever ``train()`` is called. It runs only the stages
    in ``request``, which the distiller sets to the union of what its heads ask for.
    """

    @configurable
    def __init__(
        self,
        *,
        detector: nn.Module,
        flip_channels: bool = False,
        classes: list[int] | None = None,
        config: Mapping[str, Any] | None = None,
        weights: str = "",
        allow_partial: bool = False,
        channels_last: bool = False,
        compile_backbone: bool = False,
    ):
        """
        Args:
            detector: a trained detector of a known family.
            flip_channels: the student's images are RGB where the teacher wants BGR, or vice versa.
            classes: the teacher's number of each of the student's classes; None: not known.
            config: dotted key -> value, what of its config shapes it: a part of its identity.
            weights: a file or address that :meth:`load_weights` reads.
            allow_partial: ``weights`` need not have all.
            channels_last: keep convolutions in channels-last memory.
            compile_backbone: with ``torch.compile``.
        """
        super().__init__()
        self._frozen = Frozen(detector)
        self.stages = build_stages(detector)
        self.feature_shapes = self.stages.feature_shapes
        self.flip_channels = flip_channels
        self.stages.classes = classes
        self.config = dict(config or {})
        self._weights, self._allow_partial = weights, allow_partial
        self.request = ViewRequest()
        if channels_last:
            detector.to(memory_format=torch.channels_last)
        if compile_backbone:
            detector.backbone.compile(dynamic=True)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: DetectorStages) -> dict:
        from kd_d2.config.frozen_teacher import teacher_class_map
        from kd_d2.config.teacher import load_teacher_cfg, own_settings, teacher_weights

        node = cfg.MODEL.KD.TEACHER
        teacher_cfg = load_teacher_cfg(cfg)
        detector = META_ARCH_REGISTRY.get(teacher_cfg.MODEL.META_ARCHITECTURE)(teacher_cfg)
        detector.to(torch.device(cfg.MODEL.DEVICE))
        return {
            "detector": detector,
            "flip_channels": cfg.INPUT.FORMAT != teacher_cfg.INPUT.FORMAT,
            "classes": teacher_class_map(cfg, teacher_cfg),
            "config": own_settings(teacher_cfg),
            "weights": teacher_weights(cfg),
            "allow_partial": node.ALLOW_PARTIAL_WEIGHTS,
            "channels_last": node.CHANNELS_LAST,
            "compile_backbone": node.COMPILE,
        }

    def load_weights(self) -> None:
        """Reads its weights; once, however often it is called.

        Raises:
            ValueError: they are not those of this detector, and have to be.
        """
        if self._weights:
            report = load_detector_weights(
                self.detector, self._weights, allow_partial=self._allow_partial
            )
            logger.info(f"Frozen teacher {type(self.detector).__name__}: {report}")
            self._weights = ""

    @property
    def detector(self) -> nn.Module:
        """The wrapped detector."""
        return self._frozen.module

    @property
    def classes(self) -> list[int] | None:
        """Its number of each of the student's classes; None: not known."""
        return self.stages.classes

    @property
    def num_classes(self) -> int:
        """Of the logits in its view: the student's, where their names are known."""
        return self.stages.num_classes if self.classes is None else len(self.classes)

    def _apply(self, fn, recurse=True):
        self._frozen.module._apply(fn)
        return super()._apply(fn, recurse)

    # no_grad, not inference_mode: inference tensors cannot be saved for the backward of a loss.
    @torch.no_grad()
    def forward(
        self, batched_inputs: list[dict], gt: list[Instances], student: DetectorView | None = None
    ) -> DetectorView:
        """The teacher's view of the batch; ``student`` is not looked at.

        The classes of its ``decoded`` logits, and of its assignment, are the student's.
        """
        return self.stages.run(with_channels(batched_inputs, self.flip_channels), self.request, gt)

    @torch.no_grad()
    def read_regions(self, view: DetectorView, regions: Regions, what: Set[str]) -> SeenRegions:
        """What it sees in given regions; ``view`` is its own of the batch.

        ``classes`` says where the student's are among its own.
        """
        return replace(self.stages.regions.read(view, regions, what), classes=self.classes)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """The teacher's own detections."""
        return self.detector(with_channels(batched_inputs, self.flip_channels))

    def identity(self) -> dict[str, Any]:
        """Its config and a hash of its weights: what a resumed run must find again."""
        digest = hashlib.sha256()
        for name, value in sorted(self.detector.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return {"config": self.config, "weights": digest.hexdigest()}
