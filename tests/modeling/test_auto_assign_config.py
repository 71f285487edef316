"""Every key of MODEL.AUTOASSIGN reaches the detector; the head's outputs."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg
from torch import nn

from kd_d2.modeling.detectors import AutoAssign, AutoAssignHead, add_auto_assign_config


def auto_assign_cfg():
    return resnet_18_cfg("AutoAssign", add_auto_assign_config)


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(auto_assign_cfg())
    assert type(model) is AutoAssign and model.num_classes == K
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    weights = [getattr(model, f"{key}_loss_weight") for key in ("box", "pos", "neg", "center")]
    assert weights == [5, 0.25, 0.75, 0.75]
    assert (model.test_topk_candidates, model.test_score_thresh) == (1000, 0.05)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.6, 100)
    assert len(model.head.cls_subnet) == len(model.head.bbox_subnet) == 4 * 3
    losses = model(BATCH)
    assert losses.keys() == {"loss_pos", "loss_neg", "loss_center"}
    sum(losses.values()).backward()


def test_every_key_reaches_the_model():
    cfg = auto_assign_cfg()
    node = cfg.MODEL.AUTOASSIGN
    node.IN_FEATURES, node.NUM_CONVS, node.NORM, node.PRIOR_PROB = ["p3", "p4"], 1, "", 0.5
    node.BOX_LOSS_WEIGHT, node.POS_LOSS_WEIGHT = 1.0, 2.0
    node.NEG_LOSS_WEIGHT, node.CENTER_LOSS_WEIGHT = 3.0, 4.0
    node.TOPK_CANDIDATES_TEST, node.SCORE_THRESH_TEST, node.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    weights = [getattr(model, f"{key}_loss_weight") for key in ("box", "pos", "neg", "center")]
    assert weights == [1, 2, 3, 4]
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    assert model.anchor_generator.strides == [8, 16]
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)


# ---- head


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return AutoAssignHead(input_shape=shapes, num_classes=K, **kwargs)


def test_distances_are_in_pixels_and_not_negative():
    head = head_of(levels=2)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    for mode in (True, False):
        _, distances, _ = head.train(mode)([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 2)])
        assert distances[0][0, :, 1, 1].tolist() == [4, 0, 16, 0]
        assert distances[1][0, :, 0, 0].tolist() == [24, 0, 96, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([torch.rand(1, 64, 2, 2)] * 2)[1][0].dtype == torch.float32
