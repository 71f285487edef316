"""Tiny stock detectors and random batches, for every test and the processes that tests start."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Boxes, Instances

from kd_d2 import get_kd_cfg

NUM_CLASSES = 3
DENSE = ("RetinaNet", "FCOS", "ATSS", "GFL", "AutoAssign", "DDOD", "PAA")


def tiny_cfg(arch: str = "RetinaNet", fpn_channels: int = 32):
    """A stock detector on ResNet-18, small enough for a CPU step in milliseconds.

    Args:
        arch: one of ``DENSE``, FasterRCNN, MaskRCNN or CascadeRCNN.
    """
    cfg = get_kd_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = fpn_channels
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.TEST = ()
    if arch in DENSE:
        cfg.MODEL.META_ARCHITECTURE = arch
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.5] for x in (16, 32, 64, 128, 256)]
        cfg.MODEL[arch.upper()].NUM_CLASSES = NUM_CLASSES
        cfg.MODEL[arch.upper()].NUM_CONVS = 1
        return cfg
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    features = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    if arch == "MaskRCNN":
        cfg.MODEL.MASK_ON = True
        cfg.INPUT.MASK_FORMAT = "bitmask"
        cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
        cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    if arch == "CascadeRCNN":
        cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    return cfg


def lgd_cfg(arch: str = "RetinaNet", **kwargs):
    """:func:`tiny_cfg` as the student of LGD."""
    cfg = tiny_cfg(arch, **kwargs)
    cfg.MODEL.KD.STUDENT = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "LabelGuidedDistiller"
    cfg.MODEL.KD.TEACHER.NAME = "LabelEncoder"
    cfg.MODEL.KD.HEADS = ["InstructiveFeatures"]
    return cfg


def teacher_files(folder, arch: str = "RetinaNet", **kwargs):
    """Writes config and weights of an untrained detector; returns both paths."""
    return write_untrained(tiny_cfg(arch, **kwargs), folder, arch)


def write_untrained(cfg, folder, name):
    """Writes a detector's config and random weights; returns both paths."""
    config, weights = folder / f"{name}.yaml", folder / f"{name}.pth"
    config.write_text(cfg.dump())
    torch.save({"model": build(cfg).state_dict()}, weights)
    return str(config), str(weights)


def frozen_cfg(folder, student: str = "RetinaNet", teacher: str = "RetinaNet", **kwargs):
    """:func:`tiny_cfg` as a student that learns by PKD from a frozen one in ``folder``."""
    cfg = tiny_cfg(student)
    cfg.MODEL.KD.STUDENT = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "FrozenTeacherDistiller"
    config, weights = teacher_files(folder, teacher, **kwargs)
    cfg.MODEL.KD.TEACHER.NAME = "Frozen"
    cfg.MODEL.KD.TEACHER.CONFIG_FILE = config
    cfg.MODEL.KD.TEACHER.WEIGHTS = weights
    cfg.MODEL.KD.HEADS = ["PKD"]
    return cfg


def build(cfg):
    """The model of a config, without weights."""
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def random_batch(sizes=((64, 64), (64, 96)), objects=(2, 1), seed: int = 0, masks: bool = False):
    """Random images with random boxes of 8 to 40 px; ``objects`` counts them per image."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for (h, w), n in zip(sizes, objects, strict=True):
        corner = torch.rand(n, 2, generator=generator) * torch.tensor([w - 48.0, h - 48.0])
        size = 8 + torch.rand(n, 2, generator=generator) * 32
        boxes = torch.cat([corner, corner + size], 1)
        instances = Instances((h, w), gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.randint(NUM_CLASSES, (n,), generator=generator)
        if masks:
            y, x = torch.arange(h)[None, :, None], torch.arange(w)[None, None]
            x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
            instances.gt_masks = BitMasks((x >= x1) & (x < x2) & (y >= y1) & (y < y2))
        image = torch.randint(256, (3, h, w), dtype=torch.uint8, generator=generator)
        batch.append({"image": image, "instances": instances, "height": h, "width": w})
    return batch
