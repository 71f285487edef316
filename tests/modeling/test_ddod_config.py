"""Every key of MODEL.DDOD reaches the detector."""

import torch
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg

from kd_d2.modeling.detectors.ddod import DDOD, add_ddod_config
from kd_d2.modeling.detectors.ddod_head import DDODHead, SelfDeformedConv


def ddod_cfg():
    return resnet_18_cfg("DDOD", add_ddod_config)


def test_builds_from_a_config_with_the_published_settings():
    """With nothing but Detectron2's config and this node."""
    model = build_model(ddod_cfg())
    assert type(model) is DDOD and type(model.head) is DDODHead and model.num_classes == K
    assert isinstance(model.head.cls_subnet[0], SelfDeformedConv) and len(model.head.scales) == 5
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert (model.topk, model.cls_exponent, model.box_exponent) == (9, 0.8, 0.6)
    assert (model.branch, model.box_loss_weight, model.branch_loss_weight) == ("iou", 2, 1)
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.25, 2)
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
    cfg = ddod_cfg()
    ddod = cfg.MODEL.DDOD
    ddod.IN_FEATURES, ddod.NUM_CONVS, ddod.NORM, ddod.PRIOR_PROB = ["p3", "p4"], 1, "", 0.5
    ddod.ANCHOR_SCALE, ddod.ANCHOR_OFFSET, ddod.BBOX_REG_WEIGHTS = 4.0, 0.5, (1.0, 2.0, 3.0, 4.0)
    ddod.TOPK, ddod.CLS_EXPONENT, ddod.BOX_EXPONENT = 5, 0.3, 0.2
    ddod.FOCAL_LOSS_ALPHA, ddod.FOCAL_LOSS_GAMMA = 0.5, 1.0
    ddod.BOX_LOSS_WEIGHT, ddod.IOU_LOSS_WEIGHT = 1.5, 0.5
    ddod.TOPK_CANDIDATES_TEST, ddod.SCORE_THRESH_TEST, ddod.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    assert (model.topk, model.cls_exponent, model.box_exponent) == (5, 0.3, 0.2)
    assert model.bbox_reg_weights == (1, 2, 3, 4) and len(model.cls_positives) == 2
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    anchors = model.anchor_generator([torch.zeros(1, 1, 1, 1)] * 2)
    assert [a.tensor[0].tolist() for a in anchors] == [[-12, -12, 20, 20], [-24, -24, 40, 40]]
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.5, 1)
    assert (model.box_loss_weight, model.branch_loss_weight) == (1.5, 0.5)
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)
