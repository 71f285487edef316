"""Stages of every Detectron2 ``DenseDetector``: RetinaNet, FCOS, and whoever subclasses it."""

import contextlib
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from kd_d2.modeling.sparse_tower import (
    SparsePlan,
    cells_with_objects,
    is_sparse_tower,
    plan_sparse_tower,
    run_sparse_tower,
)
from kd_d2.modeling.stages import DetectorStages, register_stages, substituted


@register_stages(DenseDetector)
class DenseStages(DetectorStages):
    """Needs of the detector only what Detectron2's own dense detectors have.

    ``forward_training(images, features, predictions, gt_instances)`` must call
    ``label_anchors(anchors, gt_instances)``; what that returns *is* the assignment, e.g. for
    RetinaNet a list of (R,) labels and a list of (R, 4) matched boxes, R = all anchors of an image.
    """

    def __init__(self, detector: DenseDetector):
        super().__init__(detector)
        shapes = detector.backbone.output_shape()
        self.feature_shapes: dict[str, ShapeSpec] = {
            f: shapes[f] for f in detector.head_in_features
        }
        self.num_classes: int = detector.num_classes
        self._last_plan: tuple[Any, SparsePlan | None] = None, None

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        return self.detector.preprocess_image(batched_inputs)

    def features(self, images: ImageList) -> dict[str, Tensor]:
        features = self.detector.backbone(images.tensor)
        return {f: features[f] for f in self.detector.head_in_features}

    def predict(self, images, features, gt=None) -> Any:
        return self.detector.head(list(features.values()))

    def losses_from_features(self, images, features, gt, assignment=None):
        if not self.skips_unused_cells():
            return super().losses_from_features(images, features, gt, assignment)
        if assignment is None:
            assignment = self.assign(images, features, None, gt)
        levels = list(features.values())
        with self._box_tower_of_positives(levels, assignment):
            predictions = self.detector.head(levels)
        return self.losses(images, features, predictions, gt, assignment)

    def skips_unused_cells(self) -> bool:
        """Whether boxes are predicted where there are positive anchors, and nowhere else."""
        return self.may_skip_cells and _reads_boxes_of_positives_alone(self.detector)

    @contextlib.contextmanager
    def _box_tower_of_positives(self, levels: list[Tensor], assignment: Any):
        head = self.detector.head
        plan = self._plan(levels, assignment)
        if plan is None:
            yield
            return
        # the head calls both once a level, in order
        outputs = iter(run_sparse_tower(_box_tower(head), levels, plan))
        head.__dict__["bbox_subnet"] = lambda x: x
        head.__dict__["bbox_pred"] = lambda x: next(outputs)
        try:
            yield
        finally:
            del head.__dict__["bbox_subnet"], head.__dict__["bbox_pred"]

    def _plan(self, levels: list[Tensor], assignment: Any) -> SparsePlan | None:
        # the same for all passes with one assignment, and to find it makes the host wait for a GPU
        planned_for, plan = self._last_plan
        if planned_for is not assignment:
            sizes = [tuple(x.shape[-2:]) for x in levels]
            needed = cells_with_objects(assignment[0], self.num_classes, sizes)
            tower = _box_tower(self.detector.head)
            num_convs = sum(isinstance(layer, nn.Conv2d) for layer in tower)
            plan = plan_sparse_tower(num_convs, needed)
            self._last_plan = assignment, plan
        return plan

    def assign(self, images, features, predictions, gt: list[Instances]) -> Any:
        if not hasattr(self.detector, "label_anchors"):
            return None
        anchors = self.detector.anchor_generator(list(features.values()))
        return self.detector.label_anchors(anchors, gt)

    def losses(self, images, features, predictions, gt, assignment=None):
        args = (images, list(features.values()), predictions, gt)
        if not hasattr(self.detector, "label_anchors"):
            if assignment is not None:
                raise self._assigns_elsewhere()
            return None, self.detector.forward_training(*args)
        with substituted(self.detector, "label_anchors", assignment) as labels:
            losses = self.detector.forward_training(*args)
        if assignment is not None and not labels.calls:
            raise self._assigns_elsewhere()
        return labels.result, losses

    def _assigns_elsewhere(self) -> TypeError:
        return TypeError(
            f"{type(self.detector).__name__}.forward_training does not call label_anchors, so it "
            "cannot take another network's assignment: register stages of its own for it."
        )

    def inference(self, images, features, batched_inputs) -> list[dict]:
        predictions = self.predict(images, features)
        results = self.detector.forward_inference(images, list(features.values()), predictions)
        return [
            {"instances": detector_postprocess(r, x.get("height", s[0]), x.get("width", s[1]))}
            for r, x, s in zip(results, batched_inputs, images.image_sizes, strict=True)
        ]

    def head_modules(self) -> list[nn.Module]:
        return [self.detector.head]


def _reads_boxes_of_positives_alone(detector: DenseDetector) -> bool:
    """Whether all is stock that decides which cells of the box tower count.

    Asked at each step: whoever changes a method, or hooks a layer, gets the dense tower at once.
    """
    head = detector.head
    stock = (
        getattr(type(detector), "losses", None) is RetinaNet.losses
        and type(detector).forward_training is RetinaNet.forward_training
        and type(head).forward is RetinaNetHead.forward
        and not {"losses", "forward_training"} & detector.__dict__.keys()
        and "forward" not in head.__dict__
    )
    if not stock or not isinstance(head.bbox_subnet, nn.Sequential):
        return False
    if not is_sparse_tower(_box_tower(head)):
        return False
    layers = (head.bbox_subnet, *_box_tower(head))
    return not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def _box_tower(head: RetinaNetHead) -> nn.Sequential:
    return nn.Sequential(*head.bbox_subnet, head.bbox_pred)
