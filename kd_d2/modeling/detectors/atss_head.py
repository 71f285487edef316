"""The head of ATSS: FCOS's towers without biases, and boxes relative to anchors.

Shapes: N images, K classes, C channels, H_l x W_l cells of level l.
"""

from torch import Tensor

from kd_d2.modeling.detectors.tower_head import TowerHead


class ATSSHead(TowerHead):
    """Class scores, box deltas and the quality of the box at every cell (arXiv 1912.02424).

    Parameter names are those of :class:`TowerHead` and ``quality``: what that output means is
    decided by what it is trained with.
    """

    arch = "ATSS"
    third = "quality"

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """
        Args:
            features: (N, C, H_l, W_l) of each level, fine to coarse.

        Returns:
            class logits (N, K, H_l, W_l); deltas dx, dy, dw, dh (N, 4, H_l, W_l); logits of the
            quality (N, 1, H_l, W_l). Each a list over the levels.
        """
        logits, deltas, quality = [], [], []
        for cls_feature, box_feature, scale, _ in self.towers(features):
            logits.append(self.cls_score(cls_feature))
            deltas.append(scale(self.bbox_pred(box_feature)))
            quality.append(self.quality(box_feature))
        return logits, deltas, quality
