"""Stages of every Detectron2 ``GeneralizedRCNN``: Faster, Mask, Cascade."""

import contextlib
from dataclasses import dataclass, field

import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from kd_d2.modeling.rcnn_regions import RCNNRegionReader
from kd_d2.modeling.sparse_backward import is_plain_conv3x3, sparse_backward_conv
from kd_d2.modeling.stages import DetectorStages, register_stages, substituted


@dataclass
class Proposals:
    """What the first stage of a two-stage detector says.

    Attributes:
        instances: per image, ``proposal_boxes`` and ``objectness_logits``.
        losses: the proposal generator's losses; empty in eval mode.
    """

    instances: list[Instances]
    losses: dict[str, Tensor] = field(default_factory=dict)


@register_stages(GeneralizedRCNN)
class RCNNStages(DetectorStages):
    """Predictions are the proposals, the assignment is the sampled and labelled proposals.

    The sampler of the ROI heads is random; keeping its result as the assignment lets several
    heads look at the same RoIs. Two sets of features have two sets of proposals, so an
    assignment is not shared between them.
    """

    shares_assignment = False
    assigns = True
    region_reader = RCNNRegionReader

    def __init__(self, detector: GeneralizedRCNN):
        if detector.proposal_generator is None:
            raise TypeError(
                "An R-CNN with precomputed proposals cannot take part in distillation: give it a "
                "MODEL.PROPOSAL_GENERATOR.NAME such as RPN."
            )
        super().__init__(detector)
        shapes = detector.backbone.output_shape()
        names = sorted(shapes, key=lambda f: shapes[f].stride)
        self.feature_shapes: dict[str, ShapeSpec] = {f: shapes[f] for f in names}
        self.num_classes: int = detector.roi_heads.num_classes

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        return self.detector.preprocess_image(batched_inputs)

    def features(self, images: ImageList) -> dict[str, Tensor]:
        features = self.detector.backbone(images.tensor)
        return {f: features[f] for f in self.feature_shapes}

    def predict(self, images, features, gt=None) -> Proposals:
        generator = self.detector.proposal_generator
        with self._sparse_backward(getattr(generator, "rpn_head", None)):
            return Proposals(*generator(images, features, gt))

    @contextlib.contextmanager
    def _sparse_backward(self, rpn_head: nn.Module | None):
        """While open, the hidden convolution of the RPN has a backward pass of sampled cells."""
        conv = getattr(rpn_head, "conv", None)
        if not (self.may_skip_cells and torch.is_grad_enabled() and _is_stock_hidden(conv)):
            yield
            return
        rpn_head.__dict__["conv"] = lambda x: conv.activation(sparse_backward_conv(x, conv))
        try:
            yield
        finally:
            del rpn_head.__dict__["conv"]

    def assign(self, images, features, predictions: Proposals, gt) -> list[Instances]:
        return self.detector.roi_heads.label_and_sample_proposals(predictions.instances, gt)

    def losses(self, images, features, predictions: Proposals, gt, assignment=None):
        roi_heads = self.detector.roi_heads
        with substituted(roi_heads, "label_and_sample_proposals", assignment) as sampled:
            _, losses = roi_heads(images, features, predictions.instances, gt)
        if not sampled.calls:
            raise RuntimeError(
                f"{type(roi_heads).__name__} samples no proposals in eval mode and so has no "
                "losses: ask a frozen two-stage teacher for its predictions at most."
            )
        return sampled.result, {**losses, **predictions.losses}

    def inference(self, images, features, batched_inputs) -> list[dict]:
        proposals = self.predict(images, features).instances
        results, _ = self.detector.roi_heads(images, features, proposals, None)
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)

    def head_modules(self) -> list[nn.Module]:
        return [self.detector.proposal_generator, self.detector.roi_heads]


def _is_stock_hidden(conv: nn.Module | None) -> bool:
    """Whether a layer is Detectron2's plain convolution with activation, watched by no hook."""
    return (
        type(conv) is Conv2d
        and is_plain_conv3x3(conv)
        and conv.norm is None
        and conv.activation is not None
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and not (conv._backward_hooks or conv._backward_pre_hooks)
    )
