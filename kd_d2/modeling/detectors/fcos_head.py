"""The head of FCOS: distances to the sides of a box, and centerness.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor
from torch.nn import functional as F

from kd_d2.modeling.detectors.tower_head import TowerHead


class FCOSHead(TowerHead):
    """Class scores, distances and centerness of every cell (arXiv 1904.01355, 2006.09214).

    Parameter names are those of :class:`TowerHead` and ``centerness``, so checkpoints of LGD's
    authors fit.
    """

    arch = "FCOS"
    third = "centerness"
    bias_before_norm = True

    @configurable
    def __init__(self, *, centerness_on_reg: bool = True, norm_reg_targets: bool = True, **common):
        """
        Args:
            centerness_on_reg: predict centerness from the box tower instead of the class tower.
            norm_reg_targets: distances are ReLU(scale * x) * stride; False: exp(scale * x).
            common: arguments of :class:`TowerHead`.
        """
        super().__init__(**common)
        self._centerness_on_reg = centerness_on_reg
        self._norm_reg_targets = norm_reg_targets

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        fcos = cfg.MODEL.FCOS
        return {
            **super().from_config(cfg, input_shape),
            "centerness_on_reg": fcos.CENTERNESS_ON_REG,
            "norm_reg_targets": fcos.NORM_REG_TARGETS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); distances l, t, r, b in pixels (N, 4, H_l, W_l), not
            negative; centerness logits (N, 1, H_l, W_l). Each a list over the levels.
        """
        logits, distances, centerness = [], [], []
        for cls_feature, box_feature, scale, stride in self.towers(features):
            logits.append(self.cls_score(cls_feature))
            centerness.append(
                self.centerness(box_feature if self._centerness_on_reg else cls_feature)
            )
            # Under autocast the float32 scale lifts the product to float32: in float16 a
            # distance of 1000 pixels would be rounded to half pixels.
            raw = scale(self.bbox_pred(box_feature))
            distances.append(F.relu(raw) * stride if self._norm_reg_targets else torch.exp(raw))
        return logits, distances, centerness
