"""Every key of MODEL.ATSS reaches the detector; the head's outputs."""

import pytest
import torch
from atss_cases import tiny_atss
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg
from torch import nn

from kd_d2.modeling.detectors import ATSS, ATSSHead, add_atss_config


def atss_cfg():
    return resnet_18_cfg("ATSS", add_atss_config)


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(atss_cfg())
    assert type(model) is ATSS and model.num_classes == K
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert (model.branch, model.topk, model.box_loss_weight) == ("iou", 9, 2.0)
    assert (model.branch_loss_weight, model.focal_loss_alpha, model.focal_loss_gamma) == (
        1,
        0.25,
        2,
    )
    assert model.bbox_reg_weights == (10, 10, 5, 5)
    assert (model.test_topk_candidates, model.test_score_thresh) == (1000, 0.05)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.6, 100)
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 5)
    assert [a.tensor[0].tolist() for a in anchors] == [
        [-s / 2, -s / 2, s / 2, s / 2] for s in (64, 128, 256, 512, 1024)
    ]
    losses = model(BATCH)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_iou"}
    sum(losses.values()).backward()


def test_every_key_reaches_the_model():
    cfg = atss_cfg()
    atss = cfg.MODEL.ATSS
    atss.IN_FEATURES, atss.BRANCH = ["p3", "p4"], "centerness"
    atss.NUM_CONVS, atss.NORM, atss.PRIOR_PROB = 1, "", 0.5
    atss.ANCHOR_SCALE, atss.ANCHOR_OFFSET, atss.BBOX_REG_WEIGHTS = 4.0, 0.5, (1.0, 2.0, 3.0, 4.0)
    atss.TOPK, atss.FOCAL_LOSS_ALPHA, atss.FOCAL_LOSS_GAMMA = 5, 0.5, 1.0
    atss.BOX_LOSS_WEIGHT, atss.BRANCH_LOSS_WEIGHT = 1.5, 0.5
    atss.TOPK_CANDIDATES_TEST, atss.SCORE_THRESH_TEST, atss.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    assert (model.branch, model.topk, model.bbox_reg_weights) == ("centerness", 5, (1, 2, 3, 4))
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 2)
    assert [a.tensor[0].tolist() for a in anchors] == [[-12, -12, 20, 20], [-24, -24, 40, 40]]
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.5, 1)
    assert (model.box_loss_weight, model.branch_loss_weight) == (1.5, 0.5)
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)


def test_unknown_branch():
    with pytest.raises(ValueError, match="MODEL.ATSS.BRANCH is 'IoU': it must be"):
        tiny_atss(branch="IoU")


# ---- head


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return ATSSHead(input_shape=shapes, num_classes=K, **kwargs)


def test_scales_multiply_the_deltas_of_their_level():
    head = head_of(levels=2)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    _, deltas, _ = head([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 1)])
    assert deltas[0][0, :, 1, 1].tolist() == [0.5, -1, 2, 0]
    assert deltas[1][0, :, 0, 0].tolist() == [1.5, -3, 6, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([torch.rand(1, 64, 2, 2)] * 2)[1][0].dtype == torch.float32
