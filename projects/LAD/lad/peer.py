"""The second network of CoLAD: a detector that is trained beside the student."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import nn

from kd_d2.checkpoint import ClassLists, KDCheckpointer
from kd_d2.config.peer import peer_config
from kd_d2.modeling.stages import DetectorStages, build_stages, check_trains_by_stages
from kd_d2.modeling.teachers import TEACHER_REGISTRY, with_channels
from kd_d2.modeling.views import DetectorView, ViewRequest


@TEACHER_REGISTRY.register()
class Peer(nn.Module):
    """Any detector, trainable; it gives its own view of the same raw images.

    State dict: ``detector.*`` with the detector's own names.
    """

    role = features_name = "peer"  # in pictures

    @configurable
    def __init__(
        self,
        *,
        detector: nn.Module,
        flip_channels: bool = False,
        weights: str = "",
        weights_classes: Sequence[str] = (),
    ):
        """
        Args:
            detector: of a known family.
            flip_channels: the student's images are RGB where this one wants BGR, or vice versa.
            weights: a file or address with which a run begins: a detector's or a backbone's.
            weights_classes: of ``weights``, in the order of its outputs; empty: as in the data.
        """
        super().__init__()
        check_trains_by_stages(type(detector))
        self.detector = detector
        self.stages = build_stages(detector)
        self.feature_shapes = self.stages.feature_shapes
        self.num_classes = self.stages.num_classes
        self.flip_channels = flip_channels
        self.request = ViewRequest()
        self._weights, self._weights_classes = weights, weights_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, student: DetectorStages) -> dict[str, Any]:
        own = peer_config(cfg)
        detector = META_ARCH_REGISTRY.get(own.MODEL.META_ARCHITECTURE)(own)
        detector.to(torch.device(cfg.MODEL.DEVICE))
        return {
            "detector": detector,
            "flip_channels": cfg.INPUT.FORMAT != own.INPUT.FORMAT,
            "weights": own.MODEL.WEIGHTS,
            "weights_classes": own.MODEL.WEIGHTS_CLASSES,
        }

    def load_initial_weights(self, classes: Sequence[str]) -> None:
        """Reads its own weights; see ``DistillationTrainer.resume_or_load``.

        Args:
            classes: of the training data.
        """
        lists = ClassLists(self._weights_classes, classes)
        KDCheckpointer(self.detector).load(self._weights, classes=lists)

    def forward(
        self, batched_inputs: list[dict], gt: list[Instances], student: DetectorView | None = None
    ) -> DetectorView:
        """Its view of the batch, with gradients; ``student`` is not looked at."""
        return self.stages.run(with_channels(batched_inputs, self.flip_channels), self.request, gt)

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Its own detections."""
        return self.detector(with_channels(batched_inputs, self.flip_channels))
