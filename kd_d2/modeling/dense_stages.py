"""Stages of every Detectron2 ``DenseDetector``: RetinaNet, FCOS, and whoever subclasses it."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.dense_regions import DenseRegionReader
from kd_d2.modeling.sparse_tower import (
    SparsePlan,
    cells_with_objects,
    is_sparse_tower,
    plan_sparse_tower,
    run_sparse_tower,
)
from kd_d2.modeling.stages import DetectorStages, register_stages, substituted
from kd_d2.modeling.taps import find_submodule

# the towers of a head, as taps; a block is [conv, norm, activation]
_TOWERS = {"cls_tower": "head.cls_subnet", "box_tower": "head.bbox_subnet"}


@register_stages(DenseDetector)
class DenseStages(DetectorStages):
    """Needs of the detector only what Detectron2's own dense detectors have.

    ``forward_training(images, features, predictions, gt_instances)`` must call
    ``label_anchors(anchors, gt_instances)``; what that returns *is* the assignment, e.g. for
    RetinaNet a list of (R,) labels and a list of (R, 4) matched boxes, R = all anchors of an image.
    A detector that assigns by its predictions has ``assigns_by_predictions = True`` and calls
    ``label_anchors(anchors, gt_instances, decoded)``.

    Taps: ``cls_tower.0`` and ``box_tower.0`` are the outputs of the first blocks of the towers, and
    so on, one entry a level; ``cls_tower.0.before_relu`` the same before the activation, and
    ``cls_tower.last`` those of the last.
    """

    region_reader = DenseRegionReader

    def __init__(self, detector: DenseDetector):
        super().__init__(detector)
        shapes = detector.backbone.output_shape()
        self.feature_shapes: dict[str, ShapeSpec] = {
            f: shapes[f] for f in detector.head_in_features
        }
        self.num_classes: int = detector.num_classes
        self.assigns_by_predictions: bool = getattr(detector, "assigns_by_predictions", False)
        self.shares_assignment = not self.assigns_by_predictions
        self.assigns = hasattr(detector, "label_anchors")
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
        with _replaced(head, bbox_subnet=lambda x: x, bbox_pred=lambda x: next(outputs)):
            yield

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

    def assign(self, images, features, predictions, gt: list[Instances], decoded=None) -> Any:
        if not self.assigns:
            return None
        anchors = self.detector.anchor_generator(list(features.values()))
        if self.assigns_by_predictions:
            if decoded is None:
                decoded = self.see(images, features, predictions)
            return self.detector.label_anchors(anchors, gt, decoded)
        return self.detector.label_anchors(anchors, gt)

    def decode(self, images, features, predictions) -> DensePredictions:
        levels = list(features.values())
        if hasattr(self.detector, "decode_predictions"):
            return self.detector.decode_predictions(images, levels, predictions)
        if isinstance(self.detector, RetinaNet):
            return _decode_retinanet(self.detector, levels, predictions)
        return super().decode(images, features, predictions)

    def can_decode(self) -> bool:
        return hasattr(self.detector, "decode_predictions") or isinstance(self.detector, RetinaNet)

    def locations_per_cell(self) -> int:
        generator = getattr(self.detector, "anchor_generator", None)
        return generator.num_anchors[0] if generator is not None else 1

    def predict_from(
        self, features: dict[str, Tensor], towers: Mapping[str, Sequence[Tensor]]
    ) -> Any:
        """:meth:`predict`, if layers of the towers gave these outputs; what leads there is not run.

        So this head can judge the towers of another network.

        Args:
            features: the detector's own.
            towers: a word for a layer -> its output at each level; each tower once.
        """
        rest = {}
        for tap, outputs in towers.items():
            _, name, layer = self.resolve_tap(tap).split(".")
            layers = getattr(self.detector.head, name)[int(layer) + 1 :]
            rest[name] = partial(_run_on_next, layers, iter(outputs))
        with _replaced(self.detector.head, **rest):
            return self.detector.head(list(features.values()))

    def box_distributions(self, predictions: Any, per_cell: int) -> Tensor | None:
        """Logits (N, A, 4, B) of the B bins of each side of a box, where a head predicts those.

        Like GFL's; others, with one number a side, have none.

        Args:
            predictions: logits and boxes first, each a list over the levels.
            per_cell: locations of a cell.
        """
        bins = predictions[1][0].shape[1] // (4 * per_cell)
        if bins == 1:
            return None
        (levels,) = self.detector._transpose_dense_predictions([predictions[1]], [4 * bins])
        return torch.cat(levels, dim=1).unflatten(-1, (4, bins))

    def resolve_tap(self, name: str) -> str:
        """Knows the words of :class:`DenseStages` besides the names of submodules.

        Raises:
            ValueError: the head has no such tower, or not so many blocks.
        """
        match = re.fullmatch(rf"({'|'.join(_TOWERS)})\.(\d+|last)(\.before_relu)?", name)
        if not match:
            return super().resolve_tap(name)
        tower = _TOWERS[match[1]]
        layers = find_submodule(self.detector, tower)
        ends = [i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]
        block = max(0, len(ends) - 1) if match[2] == "last" else int(match[2])
        if block >= len(ends):
            raise ValueError(
                f"{tower} of this {type(self.detector).__name__} has {len(ends)} blocks, and block "
                f"{block} is asked for (they are counted from 0): give it more with NUM_CONVS, or "
                "let the head of MODEL.KD.HEADS read an earlier one."
            )
        return f"{tower}.{ends[block] - bool(match[3])}"

    def losses(self, images, features, predictions, gt, assignment=None):
        args = (images, list(features.values()), predictions, gt)
        if not self.assigns:
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


@contextlib.contextmanager
def _replaced(head: nn.Module, **calls: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the head calls these in place of its modules of the same names."""
    head.__dict__.update(calls)
    try:
        yield
    finally:
        for name in calls:
            del head.__dict__[name]


def _run_on_next(layers: nn.Module, inputs: Iterator[Tensor], feature: Tensor) -> Tensor:
    return layers(next(inputs))


def _decode_retinanet(
    detector: RetinaNet, features: list[Tensor], predictions: tuple[list[Tensor], list[Tensor]]
) -> DensePredictions:
    anchors = detector.anchor_generator(features)
    logits, deltas = (
        torch.cat(x, dim=1)
        for x in detector._transpose_dense_predictions(predictions, [detector.num_classes, 4])
    )
    per_cell = detector.anchor_generator.num_anchors[0]
    squares = Boxes.cat(anchors)
    apply = detector.box2box_transform.apply_deltas
    strides = torch.cat(
        [
            x.new_full((len(a),), stride, dtype=torch.float32)
            for x, a, stride in zip(
                features, anchors, detector.anchor_generator.strides, strict=True
            )
        ]
    )
    return DensePredictions(
        logits=logits,
        boxes=torch.stack([apply(d.float(), squares.tensor) for d in deltas]),
        points=squares.get_centers(),
        strides=strides,
        valid=logits.new_ones(logits.shape[:2], dtype=torch.bool),
        sizes=[tuple(x.shape[-2:]) for x in features],
        per_cell=per_cell,
    )


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
