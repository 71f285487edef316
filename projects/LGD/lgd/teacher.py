"""The dynamic teacher: labels and the student's features -> instructive features.

Symbols: B images, M rows an image (see ``descriptors.py``), C channels, L levels of h x w cells.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from kd_d2.modeling.distill_heads import describe_shapes
from kd_d2.modeling.stages import DetectorStages
from kd_d2.modeling.teachers import TEACHER_REGISTRY
from kd_d2.modeling.views import DetectorView

from .descriptors import describe_labels, descriptor_width
from .explanation import ObjectRelations, split_attention
from .knowledge import paint_and_convolve, refinement
from .label_encoder import ENCODERS
from .label_maps import label_map_masks
from .masks import box_masks, masked_mean
from .relation import relate, uses_appearance, uses_attention, uses_labels


@TEACHER_REGISTRY.register()
class LabelEncoder(nn.Module):
    """LGD's teacher. It is trained together with the student and dropped afterwards.

    All levels share all weights. Submodules carry the names of the official release, so that its
    checkpoints can be read. What a setting leaves unused keeps its place in the state dict but
    asks for no gradient, so that DDP need not search for unused parameters.
    """

    # What kd_d2.visualization wants to know of a teacher.
    reads_labels = True
    features_name = "instructive"

    @configurable
    def __init__(
        self,
        *,
        feature_shapes: dict[str, ShapeSpec],
        num_classes: int,
        encoder: str = "PointNet",
        label_format: str = "one_hot",
        context_box: bool = True,
        detach_appearance: bool = False,
        interact_pattern: str = "stuGuided",
        num_heads: int = 8,
        label_maps: bool = False,
    ):
        """
        Args:
            feature_shapes: level name -> ShapeSpec of the student's pyramid, fine to coarse.
            num_classes: foreground classes of the student.
            encoder: a key of ``ENCODERS``.
            label_format: "one_hot" or "norm_classes".
            context_box: give each image a row for the whole canvas.
            detach_appearance: no gradient from the teacher into the student's features.
            interact_pattern: one of ``INTERACT_PATTERNS``.
            num_heads: attention heads.
            label_maps: use annotated masks (see ``label_maps.py``).

        Raises:
            ValueError: if channels differ between levels, or ``num_heads`` does not divide them.
        """
        super().__init__()
        widths = {shape.channels for shape in feature_shapes.values()}
        if len(widths) != 1:
            raise ValueError(
                "LabelEncoder writes all levels with the same weights, so all need the same "
                f"number of channels, and the student has {describe_shapes(feature_shapes)}."
            )
        channels = widths.pop()
        if channels % num_heads:
            raise ValueError(
                f"MODEL.KD.LGD.NUM_HEADS is {num_heads} and must divide the student's {channels} "
                "feature channels."
            )
        self.feature_shapes = feature_shapes
        self.num_classes = num_classes
        self.label_format = label_format
        self.context_box = context_box
        self.detach_appearance = detach_appearance
        self.interact_pattern = interact_pattern
        self.label_maps = label_maps

        width = descriptor_width(num_classes, label_format, label_maps)
        self.label_encoder_ = ENCODERS[encoder](width, channels)
        self.canoni_proj_1D = nn.Sequential(
            nn.Sequential(
                nn.Linear(channels, channels),
                nn.LayerNorm(channels, elementwise_affine=False),
                nn.ReLU(),
            )
        )
        self.student_proj_2D = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.GroupNorm(1, channels, affine=False),
                nn.ReLU(inplace=True),
            )
        )
        self.multi_head_attn = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.local_inst_proj_1D = nn.Linear(channels, channels)
        self.local_inst_proj_2D = nn.Conv2d(channels, channels, 3, padding=1)
        self.global_ctx_proj_1D = nn.Linear(channels, channels)
        self.refinement_module = refinement(channels)
        self._freeze_unused()

    @classmethod
    def from_config(cls, cfg: CfgNode, student: DetectorStages) -> dict:
        lgd = cfg.MODEL.KD.LGD
        return {
            "feature_shapes": student.feature_shapes,
            "num_classes": student.num_classes,
            "encoder": lgd.ENCODER,
            "label_format": lgd.LABEL_FORMAT,
            "context_box": lgd.ADD_CONTEXT_BOX,
            "detach_appearance": lgd.DETACH_APPEARANCE_EMBED,
            "interact_pattern": lgd.INTERACT_PATTERN,
            "num_heads": lgd.NUM_HEADS,
            "label_maps": lgd.LOAD_LABELMAP,
        }

    def _freeze_unused(self) -> None:
        unused = []
        if not self.context_box:
            unused.append(self.global_ctx_proj_1D)
        if not uses_labels(self.interact_pattern):
            unused += [self.label_encoder_, self.canoni_proj_1D]
        if not uses_appearance(self.interact_pattern):
            unused.append(self.student_proj_2D)
        if not uses_attention(self.interact_pattern):
            unused.append(self.multi_head_attn)
        for module in unused:
            module.requires_grad_(False)

    def forward(
        self, batched_inputs: list[dict], gt: list[Instances], student: DetectorView
    ) -> DetectorView:
        """The instructive features: same names and shapes as the student's features.

        Args:
            batched_inputs: not looked at.
            gt: the annotations, in coordinates of the student's input images.
            student: at least its images and features.
        """
        features = self.instruct(student.features, gt, student.images)
        return DetectorView(images=student.images, features=features)

    def explain(
        self, batched_inputs: list[dict], gt: list[Instances], student: DetectorView
    ) -> list[ObjectRelations] | None:
        """The attention between the objects of each image; None if they do not meet.

        Args: as for :meth:`forward`.
        """
        if not uses_attention(self.interact_pattern):
            return None
        seen = []
        handle = self.multi_head_attn.register_forward_hook(
            lambda module, args, output: seen.append(output[1])
        )
        try:
            self.instruct(student.features, gt, student.images)
        finally:
            handle.remove()
        counts = [len(x) for x in gt]
        levels = list(student.features)
        return split_attention(seen[0], levels, counts, self.context_box, self.interact_pattern)

    def instruct(
        self, features: dict[str, Tensor], gt: list[Instances], images: ImageList
    ) -> dict[str, Tensor]:
        """Level name -> (B, C, h, w) of the student -> the same of the teacher."""
        levels = list(features.values())
        device = levels[0].device
        # Arithmetic on rows is negligible, and sensitive: it stays in float32 under autocast.
        with torch.autocast(device.type, enabled=False):
            rows = describe_labels(
                gt,
                images.tensor.shape[-2:],
                self.num_classes,
                label_format=self.label_format,
                context_box=self.context_box,
                label_maps=self.label_maps,
                device=device,
            )
            masks = self._masks(rows.boxes, gt, images, [x.shape[-2:] for x in levels])
            labels = None
            if uses_labels(self.interact_pattern):
                labels = self.canoni_proj_1D(self.label_encoder_(rows.descriptors, rows.valid))
        appearance = None
        if uses_appearance(self.interact_pattern):
            appearance = torch.stack(
                [
                    masked_mean(self.student_proj_2D(self._appearance_input(x)), m)
                    for x, m in zip(levels, masks, strict=True)
                ]
            )
        with torch.autocast(device.type, enabled=False):
            related = relate(
                self.multi_head_attn,
                self.interact_pattern,
                appearance,
                labels,
                rows.valid,
                len(levels),
            )
            context = [None] * len(levels)
            if self.context_box:
                context = self.global_ctx_proj_1D(related[:, :, 0])
                related, masks = related[:, :, 1:], [m[:, 1:] for m in masks]
            objects = self.local_inst_proj_1D(related)
        return {
            name: self.refinement_module(
                paint_and_convolve(self.local_inst_proj_2D, e, m, c).relu_()
            )
            for name, e, m, c in zip(features, objects, masks, context, strict=True)
        }

    def _appearance_input(self, x: Tensor) -> Tensor:
        return x.detach() if self.detach_appearance else x

    def _masks(
        self, boxes: Tensor, gt: list[Instances], images: ImageList, sizes: list
    ) -> list[Tensor]:
        """One (B, M, h, w) a level: the cells of each row."""
        canvas = images.tensor.shape[-2:]
        if self.label_maps:
            return label_map_masks(
                gt,
                images.image_sizes,
                canvas,
                sizes,
                context_box=self.context_box,
                device=boxes.device,
            )
        return [box_masks(boxes, canvas, size) for size in sizes]
