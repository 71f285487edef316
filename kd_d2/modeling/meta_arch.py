"""The wiring: student view -> teacher view -> heads -> one dict of losses."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from kd_d2.config.student import student_config
from kd_d2.modeling.distill_heads import (
    DISTILL_HEAD_REGISTRY,
    DistillHead,
    build_distill_head,
)
from kd_d2.modeling.gradient_share import log_gradient_shares
from kd_d2.modeling.head_weights import HeadWeight
from kd_d2.modeling.label_exchange import assigns_alike, translate_labels, why_not_taught
from kd_d2.modeling.norm_statistics import SecondNormStatistics
from kd_d2.modeling.phases import current_iteration
from kd_d2.modeling.regions import RegionComparison, RegionSettings
from kd_d2.modeling.stages import (
    DetectorStages,
    build_stages,
    check_trains_by_stages,
    does_not_serve,
)
from kd_d2.modeling.teachers import build_teacher
from kd_d2.modeling.views import DetectorView, Stage, ViewRequest


class Distiller(nn.Module):
    """A student, a teacher, and the heads that compare them. One class for every detector.

    State dict: ``student.*`` with the student's own names, ``teacher.*`` for what is trainable in
    a teacher, ``heads.<name>.*``. At inference it is the student, and nothing else.
    """

    has_teacher_inference = True
    # Whether others have a say in which anchors of the student learn what; see label_choices
    shares_labels = False

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module | None = None,
        heads: Mapping[str, DistillHead] | None = None,
        head_weights: Mapping[str, HeadWeight] | None = None,
        assign_by_teacher: bool = False,
        label_losses: bool = True,
        num_gradient_shares: int = 0,
        skip_unused_cells: bool = True,
        regions: RegionSettings | None = None,
    ):
        """
        Args:
            student: a detector of a known family (see :func:`build_stages`).
            teacher: see ``TEACHER_REGISTRY``; None trains the student plainly.
            heads: name -> head.
            head_weights: name -> factor of the head's losses; 1 for a head that is not in it.
            assign_by_teacher: the teacher says which anchors of the student learn which object.
            label_losses: False: the student learns from the heads alone.
            num_gradient_shares: log the losses' shares in the gradient in so many iterations.
            skip_unused_cells: see MODEL.KD.SKIP_UNUSED_CELLS.
            regions: of heads that compare what both sides see in regions; None: as by default.
        """
        super().__init__()
        check_trains_by_stages(type(student))
        self.student = student
        self.teacher = teacher
        self.heads = nn.ModuleDict(heads)
        self.stages = build_stages(student)
        self.stages.may_skip_cells = skip_unused_cells
        self.head_weights = dict(head_weights or {})
        self.assign_by_teacher = assign_by_teacher
        self.num_gradient_shares = num_gradient_shares
        self._student_request = ViewRequest(Stage.LOSSES if label_losses else Stage.PREDICTIONS)
        teacher_request = ViewRequest()
        for head in self.heads.values():
            self._student_request |= head.student_request
            teacher_request |= head.teacher_request
        self._only_losses = label_losses and not any(
            request.taps or request.regions or request.stage >= Stage.PREDICTIONS
            for head in self.heads.values()
            for request in (head.student_request, head.teacher_request)
        )
        if assign_by_teacher:
            self._check_assignment(teacher.stages)
            teacher_request |= ViewRequest(Stage.ASSIGNMENT)
        for name, head in self.heads.items():
            _check_requests(name, head, self.stages, teacher)
        self.regions: RegionComparison | None = None
        if self._student_request.regions or teacher_request.regions:
            self.regions = self._compare_regions(regions or RegionSettings(), teacher_request)
            self._student_request |= self.regions.student_request
            teacher_request |= self.regions.teacher_request
        if teacher is not None:
            teacher.request = teacher_request
        for head in self.heads.values():
            head.connect(self.stages, teacher)
        if hasattr(teacher, "load_weights"):  # last: all else is known to fit
            teacher.load_weights()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        from kd_d2.config.check import check_config

        check_config(cfg)
        student_cfg = student_config(cfg)
        student = META_ARCH_REGISTRY.get(student_cfg.MODEL.META_ARCHITECTURE)(student_cfg)
        if not cfg.MODEL.KD.ENABLED:
            return {"student": student}
        stages = build_stages(student)
        teacher = build_teacher(cfg, stages)
        kd = cfg.MODEL.KD
        heads = {}
        for name in kd.HEADS:
            # first, as the shapes of detectors that a head does not serve say nothing
            _check_requests(name, DISTILL_HEAD_REGISTRY.get(name), stages, teacher)
            shapes = stages.feature_shapes, teacher.feature_shapes
            heads[name] = build_distill_head(name, cfg, *shapes)
        weights = zip(kd.HEADS, kd.HEAD_WEIGHTS or [1.0] * len(heads), strict=True)
        return {
            "student": student,
            "teacher": teacher,
            "heads": heads,
            "head_weights": {name: HeadWeight(w, cfg.SOLVER.MAX_ITER) for name, w in weights},
            "assign_by_teacher": kd.ASSIGN_BY == "teacher",
            "label_losses": kd.LABEL_LOSSES,
            "num_gradient_shares": kd.LOG_GRADIENT_SHARES,
            "skip_unused_cells": kd.SKIP_UNUSED_CELLS,
            "regions": RegionSettings.from_config(cfg),
        }

    def _check_assignment(self, teacher: DetectorStages) -> None:
        """
        Raises:
            ValueError: the teacher cannot say which anchors of the student learn what.
        """
        if reason := why_not_taught(self.stages, teacher):
            raise ValueError(f"MODEL.KD.ASSIGN_BY is teacher, which does not serve here: {reason}.")
        if assigns_alike(self.stages, teacher):
            from kd_d2.config.check import warn_once

            warn_once(
                "MODEL.KD.ASSIGN_BY is teacher, and both detectors give labels by anchors and "
                "objects alone: the teacher's are the student's own. Take a teacher that assigns "
                "by its predictions, e.g. PAA or DDOD."
            )

    def _compare_regions(
        self, settings: RegionSettings, teacher_request: ViewRequest
    ) -> RegionComparison:
        """
        Raises:
            ValueError: one side cannot see what a head asks for.
        """
        readers = [
            name
            for name, head in self.heads.items()
            if head.student_request.regions or head.teacher_request.regions
        ]
        requests = self._student_request.regions, teacher_request.regions
        try:
            comparison = RegionComparison(self.stages, self.teacher, settings, *requests)
        except ValueError as error:
            raise does_not_serve(", ".join(readers), error) from None
        for name in readers:
            for side, request in (
                (self.stages, self.heads[name].student_request),
                (self.teacher.stages, self.heads[name].teacher_request),
            ):
                if reason := side.regions.why_not(request.regions):
                    raise does_not_serve(name, f"{reason}.")
        return comparison

    @property
    def device(self):
        return next(self.student.parameters()).device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """In training the losses of student, teacher and heads; else the student's detections.

        Raises:
            ValueError: images come without labels in training, or a loss of one part would
                overwrite that of another.
        """
        if not self.training or self.teacher is None:
            return self.student(batched_inputs)
        for x in batched_inputs:
            if "instances" not in x:
                raise ValueError(
                    f"The image {x.get('file_name', '')} comes without labels ('instances'), and "
                    "training needs them: DATASETS.TRAIN must name data sets with annotations."
                )
        gt = [x["instances"].to(self.device) for x in batched_inputs]
        student, teacher = self.both_views(batched_inputs, gt)
        if self.regions is not None:
            self.regions.compare(student, teacher, gt)
        own = _united(student.losses, teacher.losses)
        by_head = {name: head(student, teacher, gt) for name, head in self.heads.items()}
        iteration = current_iteration()
        if by_head and iteration < self.num_gradient_shares:
            # at its best a head may pull much harder than in these first iterations
            largest = {name: weight.largest for name, weight in self.head_weights.items()}
            shown = _united(*_weighted(by_head, largest))
            log_gradient_shares(own, shown, list(student.features.values()))
        factors = {name: weight(iteration) for name, weight in self.head_weights.items()}
        self._log_factors(factors)
        return _united(own, *_weighted(by_head, factors))

    def both_views(
        self, batched_inputs: list[dict], gt: list[Instances]
    ) -> tuple[DetectorView, DetectorView]:
        """The student's view of a training batch, and the teacher's."""
        student = self.stages.run(batched_inputs, self._student_request, gt, self._only_losses)
        return student, self.teach(batched_inputs, gt, student)

    def _log_factors(self, factors: Mapping[str, float]) -> None:
        if has_event_storage():
            for name, factor in factors.items():
                if not self.head_weights[name].is_constant:
                    get_event_storage().put_scalar(f"weight/{name}", factor, smoothing_hint=False)

    def teach(
        self, batched_inputs: list[dict], gt: list[Instances], student: DetectorView
    ) -> DetectorView:
        """The teacher's view; its ``losses`` are trained together with the student's."""
        return self.teacher(batched_inputs, gt, student)

    def label_choices(
        self, student: DetectorView, teacher: DetectorView, gt: list[Instances]
    ) -> dict[str, list[Tensor]]:
        """Whose choice -> labels (R,) of each image, where this ``shares_labels``; for pictures.

        Args:
            student, teacher: views with predictions.
        """
        return {}

    def inference(self, batched_inputs: list[dict], teacher: bool = False) -> list[dict]:
        """Detections of the student or, on request, of the teacher.

        Raises:
            ValueError: if there is no teacher to ask.
        """
        if not teacher:
            return self.student(batched_inputs)
        if self.teacher is None:
            raise ValueError("Distillation is off (MODEL.KD.ENABLED False): there is no teacher.")
        return self.teacher_inference(batched_inputs)

    def teacher_inference(self, batched_inputs: list[dict]) -> list[dict]:
        raise NotImplementedError


def _check_requests(
    name: str, head: DistillHead | Callable, student: DetectorStages, teacher: nn.Module | None
) -> None:
    """Whether both sides can show what a head, or its class, says that it reads.

    Raises:
        ValueError: one of them cannot.
    """
    nothing = ViewRequest()
    of_student, of_teacher = (
        getattr(head, side, nothing) for side in ("student_request", "teacher_request")
    )
    student.check_request(of_student, name)
    stages = getattr(teacher, "stages", None)
    if isinstance(stages, DetectorStages):
        stages.check_request(of_teacher, name)
    elif of_teacher.decoded or of_teacher.taps or of_teacher.regions:
        raise ValueError(
            f"{name} (MODEL.KD.HEADS) reads what a teacher predicts, and a "
            f"{type(teacher).__name__} predicts nothing by itself: set MODEL.KD.TEACHER.NAME to "
            "Frozen and MODEL.META_ARCHITECTURE to FrozenTeacherDistiller."
        )


def _weighted(
    by_head: Mapping[str, Mapping[str, Tensor]], factors: Mapping[str, float]
) -> Iterator[dict[str, Tensor]]:
    """The losses of each head, times its factor, or 1."""
    for name, losses in by_head.items():
        factor = factors.get(name, 1.0)
        yield {key: factor * loss for key, loss in losses.items()}


def _united(*parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One dict of losses.

    Raises:
        ValueError: a loss of one part would overwrite that of another.
    """
    parts = [dict(part) for part in parts]
    losses = {name: loss for part in parts for name, loss in part.items()}
    if len(losses) < sum(map(len, parts)):
        raise ValueError(
            f"Two parts of the distiller return a loss of the same name: {[*map(list, parts)]}."
        )
    return losses


@META_ARCH_REGISTRY.register()
class FrozenTeacherDistiller(Distiller):
    """A trained detector teaches the student; only the heads compare the two."""

    @property
    def shares_labels(self) -> bool:
        return self.assign_by_teacher

    def both_views(self, batched_inputs, gt):
        if not self.assign_by_teacher:
            return super().both_views(batched_inputs, gt)
        teacher = self.teach(batched_inputs, gt, None)
        labels = translate_labels(teacher.assignment, self.stages, self.teacher.stages)
        student = self.stages.run(
            batched_inputs, self._student_request, gt, self._only_losses, labels
        )
        return student, teacher

    def teach(self, batched_inputs, gt, student):
        view = super().teach(batched_inputs, gt, student)
        # Knowledge for the heads, if one asked for them, and nothing to be minimised.
        view.losses = {}
        view.stages = getattr(self.teacher, "stages", None)
        return view

    def label_choices(self, student, teacher, gt):
        sides = (self.stages, student), (self.teacher.stages, teacher)
        own, others = (s.assign(v.images, v.features, v.predictions, gt) for s, v in sides)
        taught = translate_labels(others, self.stages, self.teacher.stages)
        # the last labels are those of the boxes
        return {"positive for the student": own[-2], "for the teacher: learned": taught[-2]}

    def teacher_inference(self, batched_inputs: list[dict]) -> list[dict]:
        return self.teacher.inference(batched_inputs)


def _logged_as_teacher():
    """While open, what a detector logs about its samples goes under ``teacher/``."""
    if not has_event_storage():
        return contextlib.nullcontext()
    return get_event_storage().name_scope("teacher")


@META_ARCH_REGISTRY.register()
class LabelGuidedDistiller(Distiller):
    """The teacher writes features from the labels, and the student's own head judges them.

    The features go through the student's head (same weights, trainable). Where the family
    allows it, the assignment of the student's pass is used again, so there is one assignment and
    two losses; the teacher's are called ``<name>.tea`` (LGD, arXiv 2109.11496, section 3.3).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.teacher is not None:
            statistics = SecondNormStatistics(self.stages.head_modules())
            if len(statistics):
                self.teacher.head_norms = statistics

    def teach(self, batched_inputs, gt, student):
        view = super().teach(batched_inputs, gt, student)
        with self._teacher_statistics(), _logged_as_teacher():
            args = (view.images, view.features)
            assignment = student.assignment if self.stages.shares_assignment else None
            if self._only_losses:
                view.assignment, losses = self.stages.losses_from_features(*args, gt, assignment)
            else:
                view.predictions = self.stages.predict(*args, gt)
                view.assignment, losses = self.stages.losses(
                    *args, view.predictions, gt, assignment
                )
        view.losses = {f"{name}.tea": loss for name, loss in losses.items()}
        return view

    def _teacher_statistics(self):
        norms = getattr(self.teacher, "head_norms", None)
        return norms.in_force() if norms is not None else contextlib.nullcontext()

    def teacher_inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections from the instructive features: an upper bound, not a result.

        Raises:
            ValueError: if the images come without their labels.
        """
        if any("instances" not in x for x in batched_inputs):
            raise ValueError(
                "This teacher reads the labels, and the images carry none: use "
                "kd_d2.data.mappers.build_annotated_test_mapper for its evaluation."
            )
        gt = [x["instances"].to(self.device) for x in batched_inputs]
        student = self.stages.run(batched_inputs, ViewRequest())
        view = self.teacher(batched_inputs, gt, student)
        with self._teacher_statistics():
            return self.stages.inference(view.images, view.features, batched_inputs)
