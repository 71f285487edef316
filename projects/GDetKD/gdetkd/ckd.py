"""CKD: the head that makes a region's vector the nearest to the teacher's of the same region."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from kd_d2.modeling.distill_heads import DISTILL_HEAD_REGISTRY, DistillHead
from kd_d2.modeling.gathering import gather_rows
from kd_d2.modeling.regions import Regions, SeenRegions
from kd_d2.modeling.scalars import log_scalars
from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.views import ViewRequest

from .contrast import contrastive_logits, contrastive_loss, overlapping, without_excluded
from .queue import VectorQueue


class AnchorLinear(nn.Module):
    """A linear layer without bias for each anchor of a cell.

    Two regions of one cell have the same tower features, and different aims.
    """

    def __init__(self, channels: int, dim: int, per_cell: int):
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(channels, per_cell * dim, bias=False)

    def forward(self, x: Tensor, anchors: Tensor) -> Tensor:
        """(R, C) and the anchors (R,) -> (R, dim)."""
        of_anchors = self.linear(x).unflatten(1, (-1, self.dim))
        return of_anchors[torch.arange(len(x), device=x.device), anchors]


@DISTILL_HEAD_REGISTRY.register()
class CKD(DistillHead):
    """Contrastive knowledge distillation (G-DetKD, arXiv 2108.07482).

    Negatives are the teacher's vectors of all other regions: of the image unless they overlap, of
    other images, of other processes, and of earlier iterations.
    """

    student_request = ViewRequest(regions=frozenset({"vectors"}))
    teacher_request = ViewRequest(regions=frozenset({"vectors"}))
    reads_boxes = True

    @configurable
    def __init__(
        self,
        *,
        weight: float = 0.5,
        temperature: float = 0.07,
        projection: str = "shared",
        projection_dim: int = 128,
        iou_threshold: float = 0.5,
        queue_size: int = 16384,
        feature: str = "before_relu",
    ):
        """The arguments are explained at the config keys, see :func:`add_gdetkd_config`."""
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.shared = projection == "shared"
        self.projection_dim = projection_dim
        self.iou_threshold = iou_threshold
        self.queue_size = queue_size
        self.after_relu = feature == "after_relu"

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shapes, teacher_shapes) -> dict:
        return {key.lower(): value for key, value in cfg.MODEL.KD.CKD.items()}

    def connect(self, student: DetectorStages, teacher: nn.Module) -> None:
        """Makes the layers, whose sizes are those of the vectors."""
        own, other = student.regions, teacher.stages.regions
        dim = other.vector_size
        per_cell = getattr(own, "per_cell", None)
        self.adapter: nn.Module | None = None
        if per_cell is not None:
            self.adapter = AnchorLinear(own.vector_size, dim, per_cell)
        elif own.vector_size != dim:
            self.adapter = nn.Linear(own.vector_size, dim, bias=False)
        if self.shared:
            self.projection = nn.Linear(dim, self.projection_dim, bias=False)
        else:
            self.projection = nn.Linear(dim, dim, bias=False)
        self.queue = VectorQueue(self.queue_size, dim)

    def forward(self, student, teacher, gt) -> dict[str, Tensor]:
        """Returns ``{"loss_ckd": scalar}``; all processes must call it."""
        device = teacher.regions.vectors.device.type
        with torch.autocast(device, enabled=False):
            own, aims, boxes, images = self.vectors(student.regions, teacher.regions)
            by_process = gather_rows(aims)
            loss = self.loss(own, aims, boxes, images, by_process)
            self.queue.push(torch.cat(by_process))
        return {"loss_ckd": self.weight * loss}

    def vectors(
        self, student: SeenRegions, teacher: SeenRegions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is compared of regions that both sides have vectors of.

        Returns:
            the student's vectors (R, D) in the teacher's size, the teacher's (R, D), boxes (R, 4),
            numbers of their images (R,).
        """
        own, aims, regions = student.vectors.float(), teacher.vectors.float(), student.regions
        if self.after_relu:
            own, aims = own.relu(), aims.relu()
        if isinstance(self.adapter, AnchorLinear):
            own = self.adapter(own, student.anchors)
        elif self.adapter is not None:
            own = self.adapter(own)
        kept = _predicted(regions)
        return own[kept], aims[kept].detach(), regions.boxes[kept], regions.images[kept]

    def loss(
        self, own: Tensor, aims: Tensor, boxes: Tensor, images: Tensor, by_process: list[Tensor]
    ) -> Tensor:
        """Mean over the regions of this process; 0 without any.

        Args:
            by_process: the teacher's vectors (R_i, D) of each process.
        """
        if len(own) == 0:
            return 0.0 * sum(p.sum() for p in self.parameters())
        others = [x for rank, x in enumerate(by_process) if rank != comm.get_rank()]
        negatives = torch.cat([*others, self.queue.content().to(aims)])
        student = self.projection(own)
        if self.shared:
            # only the vectors of this process have a gradient through the projection
            aims = self.projection(aims)
            with torch.no_grad():
                negatives = self.projection(negatives)
        logits = contrastive_logits(student, torch.cat((aims, negatives)), self.temperature)
        excluded = overlapping(boxes, images, self.iou_threshold)
        logits = without_excluded(logits, F.pad(excluded, (0, len(negatives))))
        first = logits.detach().argmax(1) == torch.arange(len(logits), device=logits.device)
        log_scalars(
            "ckd",
            {
                "accuracy": first.float().mean(),
                "queue": self.queue.filled,
                "excluded": excluded.sum(1).float().mean(),
                "negatives": logits.shape[1] - 1,
            },
        )
        return contrastive_loss(logits).mean()


def _predicted(regions: Regions) -> Tensor | slice:
    """Which regions a location of the student predicted; all where it has no locations."""
    return slice(None) if regions.locations is None else regions.locations >= 0
