"""A tiny FCOS and batches for its tests."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.ops import nms

from kd_d2.modeling.detectors import FCOS, FCOSHead

K = 3
STRIDES = {"p3": 8, "p4": 16, "p5": 32}


class TinyBackbone(Backbone):
    """One convolution per level."""

    def __init__(self, channels=32, strides=STRIDES):
        super().__init__()
        self._shapes = {f: ShapeSpec(channels=channels, stride=s) for f, s in strides.items()}
        self.convs = nn.ModuleDict({f: nn.Conv2d(3, channels, s, s) for f, s in strides.items()})

    def forward(self, x):
        return {name: conv(x) for name, conv in self.convs.items()}

    def output_shape(self):
        return self._shapes

    @property
    def size_divisibility(self):
        return 32


def tiny_fcos(seed=0, **kwargs):
    torch.manual_seed(seed)
    backbone = TinyBackbone()
    shapes = list(backbone.output_shape().values())
    return FCOS(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, num_classes=K, num_convs=1),
        head_in_features=list(STRIDES),
        num_classes=K,
        pixel_mean=[0.0] * 3,
        pixel_std=[255.0] * 3,
        **{"test_score_thresh": 0.0, **kwargs},
    )


def resnet_18_cfg(arch, add_config):
    """Detectron2's config with one node of ours, for a detector on a small ResNet."""
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = arch
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL[arch.upper()].NUM_CLASSES = K
    return cfg


def image(boxes, classes, size=(64, 96), seed=0):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 255
    return {"image": pixels, "instances": instances}


def slow_nms(model, boxes, scores, classes):
    """Class by class, over lists of all candidates of an image."""
    boxes, scores, classes = torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes)
    kept = []
    for k in range(K):
        of_class = torch.where(classes == k)[0]
        kept.append(of_class[nms(boxes[of_class], scores[of_class], model.test_nms_thresh)])
    kept = torch.cat(kept)
    kept = kept[scores[kept].argsort(descending=True)][: model.max_detections_per_image]
    return boxes[kept], scores[kept], classes[kept]


BATCH = [
    image([[10, 10, 50, 40], [20, 12, 40, 60], [0, 0, 96, 64], [60, 30, 72, 44]], [0, 1, 2, 0]),
    image([[30, 20, 44, 36]], [1], size=(64, 64), seed=1),
]
EMPTY = image([], [], seed=2)
