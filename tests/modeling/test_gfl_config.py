"""Every key of MODEL.GFL reaches the detector; the head's outputs."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg
from gfl_cases import tiny_gfl
from torch import nn

from kd_d2.modeling.detectors import GFL, GFLHead, add_gfl_config


def gfl_cfg():
    return resnet_18_cfg("GFL", add_gfl_config)


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(gfl_cfg())
    assert type(model) is GFL and model.num_classes == K
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert (model.reg_max, model.topk, model.focal_loss_gamma) == (16, 9, 2)
    assert (model.box_loss_weight, model.dfl_loss_weight) == (2, 0.25)
    assert (model.test_topk_candidates, model.test_score_thresh) == (1000, 0.05)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.6, 100)
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 5)
    assert [a.tensor[0].tolist() for a in anchors] == [
        [-s / 2, -s / 2, s / 2, s / 2] for s in (64, 128, 256, 512, 1024)
    ]
    losses = model(BATCH)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_dfl"}
    sum(losses.values()).backward()


def test_every_key_reaches_the_model():
    cfg = gfl_cfg()
    gfl = cfg.MODEL.GFL
    gfl.IN_FEATURES, gfl.REG_MAX, gfl.TOPK = ["p3", "p4"], 7, 5
    gfl.NUM_CONVS, gfl.NORM, gfl.PRIOR_PROB = 1, "", 0.5
    gfl.ANCHOR_SCALE, gfl.ANCHOR_OFFSET, gfl.FOCAL_LOSS_GAMMA = 4.0, 0.5, 1.0
    gfl.BOX_LOSS_WEIGHT, gfl.DFL_LOSS_WEIGHT = 1.5, 0.5
    gfl.TOPK_CANDIDATES_TEST, gfl.SCORE_THRESH_TEST, gfl.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    assert (model.reg_max, model.topk, model.focal_loss_gamma) == (7, 5, 1)
    assert model.head.bbox_pred.out_channels == 4 * 8
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 2)
    assert [a.tensor[0].tolist() for a in anchors] == [[-12, -12, 20, 20], [-24, -24, 40, 40]]
    assert (model.box_loss_weight, model.dfl_loss_weight) == (1.5, 0.5)
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)
    sum(model(BATCH).values()).backward()


def test_exponent_of_the_quality_focal_loss():
    losses = [tiny_gfl(focal_loss_gamma=beta)(BATCH) for beta in (2.0, 4.0)]
    assert losses[0]["loss_cls"] > 10 * losses[1]["loss_cls"] > 0
    assert losses[0]["loss_dfl"] == losses[1]["loss_dfl"]


# ---- head


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return GFLHead(input_shape=shapes, num_classes=K, **kwargs)


def test_scales_multiply_the_bins_of_their_level():
    head = head_of(levels=2, reg_max=1)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.arange(8.0)
    nn.init.constant_(head.scales[1].scale, 3.0)
    _, bins = head([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 1)])
    assert bins[0][0, :, 1, 1].tolist() == list(range(8))
    assert bins[1][0, :, 0, 0].tolist() == list(range(0, 24, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head([torch.rand(1, 64, 2, 2)] * 2)[1][0].dtype == torch.float32
