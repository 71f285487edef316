"""The heads of PAA: ATSS's, and those that learn where there is an object without being told.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

import math

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from kd_d2.modeling.detectors.tower_head import TowerHead

# As torch's binary cross entropy of probabilities: the least logarithm and the least denominator
_LEAST_LOG = -100.0
_LEAST_SLOPE = 1e-12
_BACKGROUND_PRIOR = 1e-4
_OBJECTNESS = ("none", "cop", "iop")


class PAAHead(TowerHead):
    """ATSS's head; on request with an objectness that nobody labels (LAD, arXiv 2108.10520).

    Parameter names are those of :class:`TowerHead` and, with an IoU branch, ``iou``; "cop" adds
    ``coefficients``, "iop" adds ``objectness`` and ``background``.

    With an objectness, the class scores are probabilities by construction; they leave this head as
    logits all the same, so that losses, costs and other heads see no difference.
    """

    arch = "PAA"
    third = "iou"

    @configurable
    def __init__(self, *, objectness: str = "none", iou_branch: bool = True, **towers):
        """
        Args:
            objectness: "none"; "cop", conditional objectness prediction, see
                :func:`conditional_objectness`; "iop", implicit objectness prediction, see
                :func:`implicit_objectness`.
            iou_branch: predict the IoU, too.
            towers: arguments of :class:`TowerHead`.

        Raises:
            ValueError: an unknown objectness.
        """
        super().__init__(**towers)
        if objectness not in _OBJECTNESS:
            raise ValueError(
                f"MODEL.PAA.OBJECTNESS is {objectness!r}; it must be one of "
                f"{', '.join(_OBJECTNESS)}."
            )
        self.kind = objectness
        if not iou_branch:
            self.iou = None
        channels = self.cls_score.in_channels
        if objectness == "cop":
            self.coefficients = _conv(channels, 9)
        elif objectness == "iop":
            self.objectness = _conv(channels, 1)
            self.background = _conv(channels, 1)
            prior = _BACKGROUND_PRIOR
            nn.init.constant_(self.background.bias, -math.log((1 - prior) / prior))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape) -> dict:
        paa = cfg.MODEL.PAA
        return {
            **super().from_config(cfg, input_shape),
            "objectness": paa.OBJECTNESS,
            "iou_branch": paa.IOU_BRANCH,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l), float32 with an objectness; deltas dx, dy, dw, dh
            (N, 4, H_l, W_l); with an IoU branch its logits (N, 1, H_l, W_l). Each a list over the
            levels.
        """
        levels = []
        for cls_feature, box_feature, scale, _ in self.towers(features):
            logits = self._with_objectness(self.cls_score(cls_feature), box_feature)
            outputs = [logits, scale(self.bbox_pred(box_feature))]
            if self.iou is not None:
                outputs.append(self.iou(box_feature))
            levels.append(outputs)
        return tuple(map(list, zip(*levels, strict=True)))

    def _with_objectness(self, logits: Tensor, box_feature: Tensor) -> Tensor:
        if self.kind == "cop":
            coefficients = self.coefficients(box_feature)
            return logit_of(conditional_objectness(logits, coefficients))
        if self.kind == "iop":
            others = self.objectness(box_feature), self.background(box_feature)
            return logit_of(implicit_objectness(logits, *others))
        return logits


def _conv(channels: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, outputs, kernel_size=3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


def conditional_objectness(logits: Tensor, coefficients: Tensor) -> Tensor:
    """Class probabilities as a gated mean over the 3 x 3 cells around each cell (COP).

    ``1/9 sum_j sigmoid(logits of neighbour j) sigmoid(coefficient j)``, row by row. Outside of the
    level logits are 0, i.e. probabilities 0.5, as in the authors' code.

    Args:
        logits: (N, K, H, W).
        coefficients: (N, 9, H, W) logits.

    Returns:
        (N, K, H, W) float32.

    >>> p = conditional_objectness(torch.full((1, 1, 3, 3), -4.0), torch.zeros(1, 9, 3, 3))
    >>> p[0, 0, 1, 1], p[0, 0, 0, 0]
    (tensor(0.0090), tensor(0.1429))
    """
    height, width = logits.shape[-2:]
    padded = F.pad(logits.float(), (1, 1, 1, 1)).sigmoid()
    gates = coefficients.float().sigmoid()
    total = 0.0
    for j in range(9):
        y, x = divmod(j, 3)
        total = total + padded[..., y : y + height, x : x + width] * gates[:, j : j + 1]
    return total / 9


def implicit_objectness(logits: Tensor, objectness: Tensor, background: Tensor) -> Tensor:
    """Class probabilities above those of the background, times that of an object (IOP).

    ``max(sigmoid(logits) - sigmoid(background), 0) sigmoid(objectness)``.

    Args:
        logits: (N, K, H, W).
        objectness, background: (N, 1, H, W) logits.

    Returns:
        (N, K, H, W) float32.

    >>> zero = torch.zeros(1, 1, 1, 1)
    >>> implicit_objectness(torch.full((1, 1, 1, 1), 1.0), zero, zero).item()
    0.11552929878234863
    """
    logits, objectness, background = (x.float() for x in (logits, objectness, background))
    return (logits.sigmoid() - background.sigmoid()).relu() * objectness.sigmoid()


def logit_of(probabilities: Tensor) -> Tensor:
    """Logits whose sigmoids are the given probabilities, both ends included.

    Logarithms are -100 at least and slopes bounded, as in torch's binary cross entropy.

    >>> logit_of(torch.tensor([0.0, 0.5, 1.0]))
    tensor([-100.,    0.,  100.])
    """
    return _LogitOf.apply(probabilities)


class _LogitOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, probabilities: Tensor) -> Tensor:
        ctx.save_for_backward(probabilities)
        on = probabilities.log().clamp(min=_LEAST_LOG)
        return on - torch.log1p(-probabilities).clamp(min=_LEAST_LOG)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return gradient / (p * (1 - p)).clamp(min=_LEAST_SLOPE)
