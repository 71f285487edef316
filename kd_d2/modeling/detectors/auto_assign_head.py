"""The head of AutoAssign: FCOS's, with objectness, and a prior of where objects have their centres.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

import torch
from detectron2.config import configurable
from torch import Tensor, nn
from torch.nn import functional as F

from kd_d2.modeling.detectors.tower_head import TowerHead

_FIRST_DISTANCE = 4.0  # strides


class CenterPrior(nn.Module):
    """Parameters of a Gaussian around the centre of an object, learned for each class.

    Attributes:
        mean: (K, 2) its place in x and y, in strides from the object's centre.
        sigma: (K, 2) its deviations, in strides.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes, 2))
        self.sigma = nn.Parameter(torch.ones(num_classes, 2))


class AutoAssignHead(TowerHead):
    """Class scores, distances and objectness of every cell (arXiv 2007.03496).

    Parameter names are those of :class:`TowerHead`, ``objectness``, and ``center_prior.mean`` and
    ``center_prior.sigma``, which only the losses read.
    """

    arch = "AutoAssign"
    third = "objectness"
    bias_before_norm = True

    @configurable
    def __init__(self, *, num_classes: int, prior_prob: float = 0.02, **common):
        """
        Args:
            num_classes, prior_prob, common: arguments of :class:`TowerHead`.
        """
        super().__init__(num_classes=num_classes, prior_prob=prior_prob, **common)
        self.center_prior = CenterPrior(num_classes)
        # behind the ReLU an empty box would never learn to grow
        nn.init.constant_(self.bbox_pred.bias, _FIRST_DISTANCE)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); distances l, t, r, b in pixels (N, 4, H_l, W_l), not
            negative; objectness logits (N, 1, H_l, W_l). Each a list over the levels.
        """
        logits, distances, objectness = [], [], []
        for cls_feature, box_feature, scale, stride in self.towers(features):
            logits.append(self.cls_score(cls_feature))
            # float32 under autocast, see FCOSHead
            distances.append(F.relu(scale(self.bbox_pred(box_feature))) * stride)
            objectness.append(self.objectness(box_feature))
        return logits, distances, objectness
