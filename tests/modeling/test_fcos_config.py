"""Every key of MODEL.FCOS reaches the detector."""

import math

import pytest
from detectron2.modeling import build_model
from fcos_cases import BATCH, K, resnet_18_cfg, tiny_fcos

from kd_d2.modeling.detectors import FCOS, add_fcos_config


def fcos_cfg():
    return resnet_18_cfg("FCOS", add_fcos_config)


def test_builds_from_a_config_with_the_published_settings():
    model = build_model(fcos_cfg())
    assert type(model) is FCOS and model.num_classes == K
    assert model.level_ranges == [(-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert (model.center_sampling_radius, model.test_nms_thresh) == (1.5, 0.6)
    sum(model(BATCH).values()).backward()


def test_every_key_reaches_the_model():
    cfg = fcos_cfg()
    fcos = cfg.MODEL.FCOS
    fcos.IN_FEATURES, fcos.SIZES_OF_INTEREST = ["p3", "p4"], [40]
    fcos.NUM_CONVS, fcos.NORM, fcos.PRIOR_PROB = 1, "", 0.5
    fcos.CENTERNESS_ON_REG, fcos.NORM_REG_TARGETS = False, False
    fcos.CENTER_SAMPLING_RADIUS, fcos.FOCAL_LOSS_ALPHA, fcos.FOCAL_LOSS_GAMMA = 0.0, 0.5, 1.0
    fcos.TOPK_CANDIDATES_TEST, fcos.SCORE_THRESH_TEST, fcos.NMS_THRESH_TEST = 7, 0.2, 0.3
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    model = build_model(cfg)
    assert model.level_ranges == [(-1, 40), (40, math.inf)]
    assert len(model.head.cls_subnet) == 2 and not model.head.cls_score.bias.any()
    assert (model.head._centerness_on_reg, model.head._norm_reg_targets) == (False, False)
    assert (model.center_sampling_radius, model.focal_loss_alpha, model.focal_loss_gamma) == (
        0,
        0.5,
        1,
    )
    assert (model.test_topk_candidates, model.test_score_thresh) == (7, 0.2)
    assert (model.test_nms_thresh, model.max_detections_per_image) == (0.3, 9)


@pytest.mark.parametrize("sizes", [[64], [64, 32], [64, 64], [1, 2, 3]])
def test_wrong_sizes_of_interest(sizes):
    with pytest.raises(ValueError, match="SIZES_OF_INTEREST needs one increasing number"):
        tiny_fcos(sizes_of_interest=sizes)
