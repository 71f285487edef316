"""SGFI: the head that matches all levels of the student with the teacher's feature of a region."""

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY, DistillHead, describe_shapes
from kd_d2.modeling.regions import Regions
from kd_d2.modeling.regions.pooling import pool_regions
from kd_d2.modeling.scalars import log_scalars
from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.views import DetectorView, ViewRequest

from .level_keys import LEAST_RESOLUTION, LevelKeys, channel_adapter
from .matching import aggregate_levels, entropy, imitation_error, level_weights


@DISTILL_HEAD_REGISTRY.register()
class SGFI(DistillHead):
    """Semantic-guided feature imitation (G-DetKD, arXiv 2108.07482).

    The teacher gives one feature of a region, from the level that it would take. The student's
    levels are all looked at, and their sum, weighted by how well each matches, is to be that
    feature. So student and teacher may be detectors of different kinds.
    """

    student_request = ViewRequest(regions=frozenset({"boxes"}))
    teacher_request = ViewRequest(regions=frozenset({"pooled"}))
    reads_boxes = True
    undecayed = ("log_temperature",)

    @configurable
    def __init__(
        self,
        *,
        student_shapes: dict[str, ShapeSpec],
        weight: float = 1.0,
        matching: str = "soft",
        embed_channels: tuple[int, int] = (128, 64),
        embed_final_relu: bool = True,
        temperature: float = 1.0,
        temperature_limits: tuple[float, float] = (0.01, 100.0),
        lr_factor: float = 1.0,
        max_regions: int = 0,
        memory_budget: float = 1024,
    ):
        """
        Args:
            student_shapes: level name -> ShapeSpec.

        The others are explained at the config keys, see :func:`add_gdetkd_config`.

        Raises:
            ValueError: the student's levels differ in channels.
        """
        super().__init__()
        channels = {x.channels for x in student_shapes.values()}
        if len(channels) > 1:
            raise ValueError(
                "SGFI has one adapter for all levels of the student, and their channels differ: "
                f"{describe_shapes(student_shapes)}."
            )
        self.soft = matching == "soft"
        self.channels = channels.pop()
        self.strides = {name: x.stride for name, x in student_shapes.items()}
        self.weight = weight
        self.lr_factor = lr_factor
        self.max_regions = max_regions
        self.memory_budget = memory_budget
        self._embedding = tuple(embed_channels), embed_final_relu
        self._limits = tuple(map(math.log, temperature_limits))
        if self.soft:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        own = {key.lower(): value for key, value in cfg.MODEL.KD.SGFI.items()}
        return {"student_shapes": student_shapes, **own}

    def connect(self, student: DetectorStages, teacher: nn.Module) -> None:
        """Makes the layers, whose sizes are those of the teacher's pooled features.

        Raises:
            ValueError: features are pooled to sizes that cannot be compared.
        """
        reader = teacher.stages.regions
        channels, size = reader.channels, reader.resolution
        self.sampling_ratio = reader.settings.pooler_sampling_ratio
        self.adapter = channel_adapter(self.channels, channels)
        if self.soft:
            if size < LEAST_RESOLUTION:
                raise ValueError(
                    f"SGFI embeds pooled features of at least {LEAST_RESOLUTION} x "
                    f"{LEAST_RESOLUTION} cells, and the teacher's have {size} x {size}: take a "
                    "teacher with a larger POOLER_RESOLUTION, or set MODEL.KD.SGFI.MATCHING "
                    "assigned."
                )
            self.keys = LevelKeys(channels, *self._embedding)
        else:
            self.assigned_levels = student.regions.levels
            self.pooler = student.regions.make_pooler(size)

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Puts tau back within its limits, on all processes alike.

        The parameter itself, and not its use, so that it has a gradient at the limits, too.
        """
        if self.soft:
            self.log_temperature.clamp_(*self._limits)

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_sgfi": scalar}``."""
        self.limit_temperature()
        regions, seen = student.regions.regions, teacher.regions
        if len(regions) == 0:
            return {"loss_sgfi": 0.0 * sum(p.float().sum() for p in self.parameters())}
        target, strides = seen.pooled, seen.strides
        if 0 < self.max_regions < len(regions):
            chosen = torch.randperm(len(regions))[: self.max_regions].sort().values
            regions, target, strides = regions.take(chosen), target[chosen], strides[chosen]
        if self.soft:
            errors, weights = self.compare(student, regions, target)
            self._log(weights.detach(), strides)
        else:
            with _in_float32(target):
                features = [student.features[level].float() for level in self.assigned_levels]
                own = self.adapter(self.pooler(features, regions.per_image()))
                errors = imitation_error(own, target)
        return {"loss_sgfi": self.weight * errors.mean()}

    def match_levels(
        self, student: DetectorView, regions: Regions, target: Tensor
    ) -> Tensor | None:
        """Weights of the student's levels in regions (R, L), for pictures; None if it has none.

        Args:
            target: (R, C, h, w), the teacher's pooled features.
        """
        if not self.soft:
            return None
        if len(regions) == 0:
            return target.new_zeros(0, len(self.strides))
        return self.compare(student, regions, target)[1]

    def compare(
        self, student: DetectorView, regions: Regions, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How far the student is from the teacher's features, and which levels it takes.

        In chunks where there are too many regions for the memory budget.

        Args:
            target: (R, C, h, w), of the regions.

        Returns:
            mean squared errors (R,); weights of the student's levels (R, L).
        """
        features = [student.features[level] for level in self.strides]
        temperature = self.log_temperature.exp()
        size = target.shape[-1]
        bytes_each = 4 * len(features) * self.channels * size**2
        limit = max(1, int(self.memory_budget * 2**20 / bytes_each))
        if len(regions) <= limit:
            return self._compare(regions, target, temperature, *features)
        chunks = [
            checkpoint(
                *(self._compare, regions.take(index), target[index], temperature, *features),
                use_reentrant=False,
            )
            for index in torch.arange(len(regions)).split(limit)
        ]
        errors, weights = zip(*chunks, strict=True)
        return torch.cat(errors), torch.cat(weights)

    def _compare(
        self, regions: Regions, target: Tensor, temperature: Tensor, *features: Tensor
    ) -> tuple[Tensor, Tensor]:
        # dot products of keys that are not normalised: half precision has neither room nor digits
        with _in_float32(target):
            levels = self.pool(features, regions, target.shape[-1])
            keys = self.keys(levels.flatten(0, 1), self.adapter).unflatten(0, levels.shape[:2])
            weights = level_weights(keys, self.keys(target.float()), temperature)
            # the adapter is linear and the weights sum to 1: it may as well come after the sum
            own = self.adapter(aggregate_levels(levels, weights))
            return imitation_error(own, target), weights

    def pool(self, features: tuple[Tensor, ...], regions: Regions, size: int) -> Tensor:
        """All levels of the student in the regions, (R, L, C', h, w), float32."""
        pooled = [
            pool_regions(x, regions, stride, size, self.sampling_ratio)
            for x, stride in zip(features, self.strides.values(), strict=True)
        ]
        return torch.stack(pooled, 1)

    def _log(self, weights: Tensor, teacher_strides: Tensor) -> None:
        strides = weights.new_tensor(list(self.strides.values()))
        others = strides[weights.argmax(1)] != teacher_strides
        values = {
            f"weight_{level}": x for level, x in zip(self.strides, weights.mean(0), strict=True)
        }
        log_scalars(
            "sgfi",
            {
                "temperature": self.log_temperature.detach().exp(),
                "entropy": entropy(weights),
                "cross_level_share": others.float().mean(),
                **values,
            },
        )


def _in_float32(like: Tensor) -> torch.autocast:
    """Autocast would take matrix products and convolutions back to half precision."""
    return torch.autocast(like.device.type, enabled=False)
