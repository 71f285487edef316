"""Settings of a config, read off the names and shapes of a detector's weights.

So that weights of another config are refused with the setting that differs, and not with a list
of shapes.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["detector_settings", "differing_settings"]

State = Mapping[str, torch.Tensor]
_BOTTOM_UP = "backbone.bottom_up."
_DEPTHS = {
    (2, 2, 2, 2, False): 18,
    (3, 4, 6, 3, False): 34,
    (3, 4, 6, 3, True): 50,
    (3, 4, 23, 3, True): 101,
    (3, 8, 36, 3, True): 152,
}


def differing_settings(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Names the settings that differ, with both values; "" if none does.

    If the detector differs, or its backbone, nothing else is worth saying.

    >>> differing_settings({"A": 1, "B": 2}, {"A": 1, "B": 3})
    'B (2 in the file, 3 in the config)'
    """
    different = {
        key: f"{key} ({given.get(key, 'none')} in the file, {wanted.get(key, 'none')} in the "
        "config)"
        for key in [*given, *(k for k in wanted if k not in given)]
        if given.get(key) != wanted.get(key)
    }
    for key in ("detector", "backbone"):
        if key in different:
            return different[key]
    return ", ".join(different.values())


def detector_settings(state: State) -> dict[str, Any]:
    """Config key, or words where no single key says it -> value, as far as weights tell.

    Args:
        state: of a RetinaNet, a dense detector of ours or a GeneralizedRCNN, with FPN, in
            Detectron2's names. Other names are not looked at.
    """
    settings: dict[str, Any] = {}
    if any(k.startswith("roi_heads.") for k in state):
        settings["detector"] = "GeneralizedRCNN"
        settings["MODEL.MASK_ON"] = any(k.startswith("roi_heads.mask_head.") for k in state)
        settings |= _rcnn(state)
    elif "head.cls_score.weight" in state:
        settings["detector"] = detector = _dense_detector(state)
        settings |= _dense(detector.upper(), state)
    if f"{_BOTTOM_UP}stem.conv1.weight" in state:
        settings["backbone"] = "ResNet"
        settings |= _resnet(state)
    elif f"{_BOTTOM_UP}patch_embed.proj.weight" in state:
        settings["backbone"] = "Swin"
        settings |= _swin(state)
    elif f"{_BOTTOM_UP}features.0.0.weight" in state:
        settings["backbone"] = "MobileNetV2"
    return settings | _fpn(state)


def _dense_detector(state: State) -> str:
    if any(f"head.{output}.weight" in state for output in ("iou", "coefficients", "background")):
        return "PAA"
    for output, detector in (("centerness", "FCOS"), ("objectness", "AutoAssign")):
        if f"head.{output}.weight" in state:
            return detector
    if "head.quality.weight" in state:
        deformable = any(k.startswith("head.cls_subnet.0.conv_offset.") for k in state)
        return "DDOD" if deformable else "ATSS"
    if "head.scales.0.scale" not in state:
        return "RetinaNet"
    # PAA without an IoU output has one number a side, GFL several
    boxes = state.get("head.bbox_pred.weight")
    return "PAA" if boxes is not None and len(boxes) == 4 else "GFL"


def _count(state: State, pattern: str) -> int:
    return sum(re.fullmatch(pattern, k) is not None for k in state)


def _resnet(state: State) -> dict[str, Any]:
    blocks = [_count(state, rf"{_BOTTOM_UP}res{i}\.\d+\.conv1\.weight") for i in range(2, 6)]
    bottleneck = f"{_BOTTOM_UP}res2.0.conv3.weight" in state
    offsets = [f"{_BOTTOM_UP}res{i}.0.conv2_offset.weight" for i in range(2, 6)]
    settings: dict[str, Any] = {
        "MODEL.RESNETS.DEPTH": _DEPTHS.get((*blocks, bottleneck), f"{blocks} blocks"),
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [k in state for k in offsets],
    }
    for k in offsets:
        if k in state:  # 2 numbers for each of 9 cells, or 3 with a modulation
            settings["MODEL.RESNETS.DEFORM_MODULATED"] = len(state[k]) % 27 == 0
    conv2 = state.get(f"{_BOTTOM_UP}res2.0.conv2.weight")
    if bottleneck and conv2 is not None:
        settings["MODEL.RESNETS.NUM_GROUPS"] = conv2.shape[0] // conv2.shape[1]
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = conv2.shape[1]
    return settings


def _swin(state: State) -> dict[str, Any]:
    tables = [
        state.get(f"{_BOTTOM_UP}layers.{i}.blocks.0.attn.relative_position_bias_table")
        for i in range(4)
    ]
    settings: dict[str, Any] = {
        "MODEL.SWIN.EMBED_DIM": len(state[f"{_BOTTOM_UP}patch_embed.proj.weight"]),
        "MODEL.SWIN.DEPTHS": [
            _count(state, rf"{_BOTTOM_UP}layers\.{i}\.blocks\.\d+\.norm1\.weight") for i in range(4)
        ],
    }
    if all(t is not None for t in tables):  # ((2 * window - 1) ** 2, heads)
        settings["MODEL.SWIN.NUM_HEADS"] = [t.shape[1] for t in tables]
        settings["MODEL.SWIN.WINDOW_SIZE"] = (math.isqrt(len(tables[0])) + 1) // 2
    return settings


def _fpn(state: State) -> dict[str, Any]:
    laterals = {
        int(m[1]): state[m[0]]
        for m in (re.fullmatch(r"backbone\.fpn_lateral(\d+)\.weight", k) for k in state)
        if m
    }
    if not laterals:
        return {}
    settings: dict[str, Any] = {
        "FPN levels with a lateral connection": sorted(laterals),
        "MODEL.FPN.OUT_CHANNELS": len(laterals[min(laterals)]),
    }
    p6 = state.get("backbone.top_block.p6.weight")
    if p6 is not None:
        from_backbone = p6.shape[1] == laterals[max(laterals)].shape[1] != p6.shape[0]
        settings["MODEL.FPN.TOP_BLOCK_IN_FEATURE"] = "res5" if from_backbone else "p5"
    return settings


def _dense(node: str, state: State) -> dict[str, Any]:
    scores, boxes = state["head.cls_score.weight"], state.get("head.bbox_pred.weight")
    # the others have one box a cell, GFL a distribution of it
    anchors = len(boxes) // 4 if node == "RETINANET" and boxes is not None else 1
    tower = {k: v for k, v in state.items() if re.fullmatch(r"head\.cls_subnet\.\d+\.weight", k)}
    own = {"MODEL.GFL.REG_MAX": len(boxes) // 4 - 1} if node == "GFL" and boxes is not None else {}
    return own | {
        f"MODEL.{node}.NUM_CLASSES": len(scores) // max(anchors, 1),
        "anchors at a cell": anchors,
        f"MODEL.{node}.NUM_CONVS": sum(v.dim() == 4 for v in tower.values()),
        f"norm in the head (MODEL.{node}.NORM)": any(v.dim() == 1 for v in tower.values()),
    }


def _rcnn(state: State) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    rpn = state.get("proposal_generator.rpn_head.objectness_logits.weight")
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    boxes = state.get("roi_heads.box_predictor.bbox_pred.weight")
    if rpn is not None:
        settings["anchors at a cell"] = len(rpn)
    if scores is not None:
        settings["MODEL.ROI_HEADS.NUM_CLASSES"] = len(scores) - 1
        settings["MODEL.ROI_BOX_HEAD.NUM_FC"] = _count(state, r"roi_heads\.box_head\.fc\d+\.weight")
        settings["MODEL.ROI_BOX_HEAD.FC_DIM"] = scores.shape[1]
    if boxes is not None:
        settings["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] = (
            len(boxes) == 4 != 4 * (len(scores) - 1)
        )
    return settings
