"""PGD's head: where the teacher predicts well, the towers of the student imitate its own."""

from dataclasses import replace

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.detectors.fcos_targets import pad_objects
from kd_d2.modeling.distill_heads import (
    DISTILL_HEAD_REGISTRY,
    DistillHead,
    describe_shapes,
    pair_levels,
)
from kd_d2.modeling.views import Stage, ViewRequest

from .config import DETECTORS, SWAPS_AXES
from .losses import cls_loss, reg_loss
from .maps import PredictionGuidedMaps, prediction_guided_maps

_TAPS = ("cls_tower.0", "box_tower.0")


@DISTILL_HEAD_REGISTRY.register()
class PGD(DistillHead):
    """Prediction-guided distillation (arXiv 2203.05469).

    Imitated are the outputs of the first blocks of both towers, at all levels, in cells that the
    teacher's predictions and the annotations choose. Student and teacher are dense detectors with
    one location a cell and towers of equal width; the paper has two of the same kind.
    """

    student_request = ViewRequest(Stage.PREDICTIONS, _TAPS)
    teacher_request = ViewRequest(Stage.PREDICTIONS, _TAPS, decoded=True)
    compares_classes = True

    @configurable
    def __init__(
        self,
        *,
        student_shapes: dict[str, ShapeSpec],
        teacher_shapes: dict[str, ShapeSpec],
        topk: int = 30,
        cls_exponent: float = 0.8,
        reg_exponent: float = 0.6,
        jitter: bool = True,
        low_bound: float = 0.0,
        temperature: float = 0.8,
        alpha: float = 0.08,
        beta: float = 0.04,
        gamma: float = 0.128,
        delta: float = 0.0008,
        level_weights: tuple[float, ...] = (1.0, 1.25, 1.5, 1.75, 2.0),
        shared_masks: bool = False,
        swapped_axes: bool = False,
        mixed_strides: bool = False,
    ):
        """
        Args:
            student_shapes, teacher_shapes: level name -> ShapeSpec, of equal strides and channels.
            shared_masks, swapped_axes, mixed_strides: the three faults of the release, see
                :func:`cls_loss`, :func:`prediction_guided_maps` and :func:`with_mixed_strides`.

        The others are explained at the config keys, see :func:`add_pgd_config`.

        Raises:
            ValueError: levels or channels differ, or the number of level weights.
        """
        super().__init__()
        pairs = pair_levels(student_shapes, teacher_shapes)
        differ = any(student_shapes[s].channels != teacher_shapes[t].channels for s, t in pairs)
        if differ or not len(pairs) == len(student_shapes) == len(teacher_shapes):
            raise ValueError(
                "PGD compares the towers of student and teacher cell by cell and channel by "
                "channel, so all levels must agree in stride and channels: student "
                f"{describe_shapes(student_shapes)}; teacher {describe_shapes(teacher_shapes)}."
            )
        if len(level_weights) != len(pairs):
            raise ValueError(
                f"MODEL.KD.PGD.LEVEL_WEIGHTS has {len(level_weights)} numbers for {len(pairs)} "
                "levels: give one for each."
            )
        self.levels = [s for s, _ in pairs]
        self.topk = topk
        self.exponents = {"cls_exponent": cls_exponent, "reg_exponent": reg_exponent}
        self.jitter = jitter
        self.low_bound = low_bound
        self.temperature = temperature
        self.alpha, self.beta, self.gamma, self.delta = alpha, beta, gamma, delta
        self.level_weights = tuple(level_weights)
        self.shared_masks = shared_masks
        self.swapped_axes = swapped_axes
        self.mixed_strides = mixed_strides

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        pgd, student = cfg.MODEL.KD.PGD, cfg.MODEL.KD.STUDENT
        faults = pgd.REFERENCE_FAULTS if pgd.MODE == "reference" else ()
        own = {k.lower(): v for k, v in pgd.items() if k not in ("MODE", "REFERENCE_FAULTS")}
        return {
            "student_shapes": student_shapes,
            "teacher_shapes": teacher_shapes,
            **own,
            "shared_masks": "shared_masks" in faults,
            "swapped_axes": "swapped_axes" in faults and student in SWAPS_AXES,
            "mixed_strides": "mixed_strides" in faults and student == "GFL",
        }

    def connect(self, student, teacher) -> None:
        """
        Raises:
            ValueError: the teacher has several anchors in a cell.
        """
        per_cell = teacher.stages.locations_per_cell()
        if per_cell != 1:
            raise ValueError(
                "PGD (MODEL.KD.HEADS) needs one location a cell, and the teacher has "
                f"{per_cell} anchors in each: take {', '.join(DETECTORS)}."
            )

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``loss_pgd_cls_<level>`` and ``loss_pgd_reg_<level>`` of each level."""
        decoded = teacher.decoded
        boxes, classes = pad_objects(gt)
        maps = self.maps(decoded, boxes, classes)
        cls_maps, reg_maps, backgrounds = (
            [m.unflatten(1, size) for m, size in zip(split, decoded.sizes, strict=True)]
            for split in map(decoded.split_levels, (maps.cls, maps.reg, maps.background))
        )
        losses = {}
        for i, level in enumerate(self.levels):
            sides = [(student.taps[tap][i], teacher.taps[tap][i]) for tap in _TAPS]
            shared = {"delta": self.delta, "temperature": self.temperature}
            losses[f"loss_pgd_cls_{level}"] = cls_loss(
                *sides[0],
                cls_maps[i],
                backgrounds[i],
                alpha=self.alpha,
                beta=self.beta,
                level_weight=self.level_weights[i],
                share_masks=self.shared_masks,
                **shared,
            )
            losses[f"loss_pgd_reg_{level}"] = reg_loss(
                *sides[1],
                reg_maps[i],
                gamma=self.gamma,
                max_positives=boxes.shape[1] * self.topk,
                **shared,
            )
        return losses

    def maps(
        self, decoded: DensePredictions, boxes: Tensor, classes: Tensor
    ) -> PredictionGuidedMaps:
        """The maps of a batch; see :func:`prediction_guided_maps`."""
        if self.mixed_strides:
            decoded = replace(decoded, boxes=with_mixed_strides(decoded))
        # float32, whatever the teacher computes in: products of small numbers decide the ranks
        with torch.autocast(boxes.device.type, enabled=False):
            return prediction_guided_maps(
                decoded,
                boxes,
                classes,
                k=self.topk,
                low_bound=self.low_bound,
                jitter=self.jitter,
                transposed=self.swapped_axes,
                **self.exponents,
            )


def with_mixed_strides(decoded: DensePredictions) -> Tensor:
    """Boxes (N, A, 4) as PGD's release decodes those of GFL for its maps.

    The i-th image of the batch gets the stride of the i-th level, at all levels.

    Raises:
        ValueError: there are more images than levels; the release drops them without a word.
    """
    num_images, num_levels = len(decoded.boxes), len(decoded.sizes)
    if num_images > num_levels:
        raise ValueError(
            f"MODEL.KD.PGD.MODE reference works with up to {num_levels} images a process for GFL, "
            f"and there are {num_images}: take more processes, a smaller SOLVER.IMS_PER_BATCH, or "
            "MODE corrected."
        )
    of_levels = [s[:1] for s in decoded.split_levels(decoded.strides, dim=0)]
    factor = torch.cat(of_levels)[:num_images, None] / decoded.strides  # (N, A)
    centres = decoded.points.repeat(1, 2)
    return centres + (decoded.boxes - centres) * factor[..., None]
