"""Teaches a detector that labels may weigh differently, without a subclass of it."""

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from torch import nn

from .rcnn import weigh_rcnn
from .retinanet import weigh_retinanet
from .settings import LabelWeights


def weigh_labels(detector: nn.Module, cfg: CfgNode) -> None:
    """Lets a detector's losses see weights, boxes to ignore and covered classes, as a config wants.

    Its parameters, its state dict and its inference stay the same, and so do its losses where all
    weights are 1, there is nothing to ignore, and all classes were looked for.

    Args:
        detector: RetinaNet, an R-CNN, or one of ours.

    Raises:
        ConfigError: classes may not be covered, and it has one loss for all of them.
        ValueError: it is none of these, and the config wants weights.
    """
    from kd_d2.modeling.detectors.one_per_cell import OnePerCellDetector

    settings = LabelWeights.from_config(cfg)
    if settings is None:
        return
    if isinstance(detector, OnePerCellDetector):
        detector.label_weights = settings
    elif isinstance(detector, RetinaNet):
        weigh_retinanet(detector, settings)
    elif isinstance(detector, GeneralizedRCNN):
        weigh_rcnn(detector, settings)
    else:
        raise ValueError(
            f"MODEL.LABEL_WEIGHTS: the losses of a {type(detector).__name__} cannot be weighted; "
            "they can of RetinaNet, R-CNNs, and kd_d2's own dense detectors."
        )
