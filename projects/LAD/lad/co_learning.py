"""CoLAD: two networks are trained together, and the one that tells anchors apart teaches both."""

from dataclasses import replace

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.events import has_event_storage
from torch import Tensor

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.detectors.paa_targets import PreAssignment
from kd_d2.modeling.label_exchange import why_not_taught
from kd_d2.modeling.meta_arch import Distiller
from kd_d2.modeling.scalars import log_scalars
from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.views import DetectorView, Stage

from .switching import choose_costs


@META_ARCH_REGISTRY.register()
class CoLearningDistiller(Distiller):
    """Student and peer learn the same labels (CoLAD, arXiv 2108.10520).

    Of each image, object and level, the costs of the network with the higher score choose; see
    ``switching.py``. All losses are added; the peer's are called ``<name>.peer``. Heads see both
    views, as with any teacher, but their losses train both networks.
    """

    shares_labels = True

    @configurable
    def __init__(self, *, switch: str = "std_mean", **common):
        """
        Args:
            switch: a key of ``SWITCHES``.
            common: arguments of :class:`Distiller`.

        Raises:
            ValueError: the two cannot share labels.
        """
        super().__init__(**common)
        self.switch = switch
        if self.teacher is None:
            return
        for stages, role in ((self.stages, "student"), (self.teacher.stages, "peer")):
            if not hasattr(stages.detector, "preassign"):
                raise ValueError(
                    "CoLearningDistiller compares the costs of anchors, and the "
                    f"{role}, a {type(stages.detector).__name__}, has none: take a PAA."
                )
        if reason := why_not_taught(self.stages, self.teacher.stages):
            reason = reason.replace("the teacher", "the peer")
            raise ValueError(f"Two networks share labels in a CoLearningDistiller, and {reason}.")
        if self.stages.num_classes != self.teacher.num_classes:
            raise ValueError(
                f"The student has {self.stages.num_classes} classes and its peer "
                f"{self.teacher.num_classes}: both are trained on the same data."
            )
        # losses come when both have predicted
        self._student_request = replace(self._student_request, stage=Stage.PREDICTIONS)
        self.teacher.request = replace(
            self.teacher.request, stage=max(self.teacher.request.stage, Stage.PREDICTIONS)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "switch": cfg.MODEL.KD.COLAD.SWITCH}

    def both_views(self, batched_inputs, gt) -> tuple[DetectorView, DetectorView]:
        student = self.stages.run(batched_inputs, self._student_request, gt)
        views = student, self.teach(batched_inputs, gt, student)
        sides = self.stages, self.teacher.stages
        assignment = self.share_labels(views, gt)
        for stages, view, suffix in zip(sides, views, ("", ".peer"), strict=True):
            view.assignment, losses = stages.losses(
                view.images, view.features, view.predictions, gt, assignment
            )
            view.losses = {f"{name}{suffix}": loss for name, loss in losses.items()}
        return views

    @torch.no_grad()
    def share_labels(
        self, views: tuple[DetectorView, DetectorView], gt: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The labels of both: which anchors learn which object, as ``PAA.label_anchors``.

        Args:
            views: of the student and of the peer.
        """
        student, peer = self.stages, self.teacher.stages
        anchors = student.detector.anchor_generator(list(views[0].features.values()))
        pre = student.detector.preassign(anchors, gt)
        costs = [
            stages.detector.costs(pre, _decoded(stages, view))
            for stages, view in zip((student, peer), views, strict=True)
        ]
        chosen, by_peer = choose_costs(*costs, pre, self.switch)
        _log(pre, costs, by_peer)
        return student.detector.select(pre, chosen)

    def label_choices(self, student, teacher, gt):
        sides = (self.stages, student), (self.teacher.stages, teacher)
        own, others = (s.assign(v.images, v.features, v.predictions, gt)[0] for s, v in sides)
        shared, _ = self.share_labels((student, teacher), gt)
        titles = "positive for the student", "for the peer", "shared: learned"
        return dict(zip(titles, (own, others, shared), strict=True))

    def teacher_inference(self, batched_inputs: list[dict]) -> list[dict]:
        return self.teacher.inference(batched_inputs)


def _decoded(stages: DetectorStages, view: DetectorView) -> DensePredictions:
    if view.decoded is not None:
        return view.decoded
    return stages.see(view.images, view.features, view.predictions)


def _log(pre: PreAssignment, costs: list[Tensor], by_peer: Tensor) -> None:
    """The peer's share of the objects and levels, and the mean costs of both."""
    if not (has_event_storage() and len(costs[0])):
        return
    there = torch.zeros_like(by_peer).index_fill_(0, pre.group, True)
    student, peer = (x.mean() for x in costs)
    share = by_peer.sum() / there.sum()
    log_scalars("colad", {"peer_share": share, "student_cost": student, "peer_cost": peer})
