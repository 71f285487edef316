"""FCOS: head, losses against per-point loops, batches without objects, inference, config."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torchvision.ops import nms

from kd_d2.modeling.detectors import FCOS, FCOSHead, add_fcos_config
from kd_d2.modeling.detectors import fcos as fcos_module

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


def image(boxes, classes, size=(64, 96), seed=0):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.long)
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 255
    return {"image": pixels, "instances": instances}


BATCH = [
    image([[10, 10, 50, 40], [20, 12, 40, 60], [0, 0, 96, 64], [60, 30, 72, 44]], [0, 1, 2, 0]),
    image([[30, 20, 44, 36]], [1], size=(64, 64), seed=1),
]
EMPTY = image([], [], seed=2)


def slow_losses(model, batch):
    """The three losses with one Python number at a time."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    logits, distances, centerness = model.head(list(features.values()))
    sizes = [64, 128]
    ranges = list(zip([-1, *sizes], [*sizes, math.inf], strict=True))
    cls = box = ctr = ctr_sum = 0.0
    positives = 0
    for n, sample in enumerate(batch):
        boxes = sample["instances"].gt_boxes.tensor.tolist()
        classes = sample["instances"].gt_classes.tolist()
        for level, stride in enumerate(STRIDES.values()):
            height, width = logits[level].shape[-2:]
            for i in range(height):
                for j in range(width):
                    x, y = (j + 0.5) * stride, (i + 0.5) * stride
                    best = None
                    for b, (x1, y1, x2, y2) in enumerate(boxes):
                        sides = (x - x1, y - y1, x2 - x, y2 - y)
                        off = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                        area = (x2 - x1) * (y2 - y1)
                        if (
                            min(sides) > 0
                            and off < 1.5 * stride
                            and ranges[level][0] <= max(sides) <= ranges[level][1]
                            and (best is None or area < best[0])
                        ):
                            best = (area, b, sides)
                    for k in range(K):
                        p = 1 / (1 + math.exp(-logits[level][n, k, i, j].item()))
                        if best is not None and classes[best[1]] == k:
                            cls += 0.25 * (1 - p) ** 2 * -math.log(p)
                        else:
                            cls += 0.75 * p**2 * -math.log(1 - p)
                    if best is None:
                        continue
                    positives += 1
                    left, top, right, bottom = best[2]
                    target = math.sqrt(
                        min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                    )
                    ctr_sum += target
                    p = 1 / (1 + math.exp(-centerness[level][n, 0, i, j].item()))
                    ctr -= target * math.log(p) + (1 - target) * math.log(1 - p)
                    pl, pt, pr, pb = distances[level][n, :, i, j].tolist()
                    inter = (min(pl, left) + min(pr, right)) * (min(pt, top) + min(pb, bottom))
                    union = (pl + pr) * (pt + pb) + best[0] - inter
                    hull = (max(pl, left) + max(pr, right)) * (max(pt, top) + max(pb, bottom))
                    box += target * (1 - inter / union + (hull - union) / hull)
    assert positives > 5
    return {
        "loss_cls": cls / max(1, positives),
        "loss_box_reg": box / max(1, ctr_sum),
        "loss_centerness": ctr / max(1, positives),
    }


def test_losses_equal_per_point_loops():
    model = tiny_fcos()
    nn.init.constant_(model.head.bbox_pred.bias, 0.7)  # not all boxes empty
    for scale, value in zip(model.head.scales, (1.0, 1.5, 2.0), strict=True):
        nn.init.constant_(scale.scale, value)
    losses = model(BATCH)
    expected = slow_losses(model, BATCH)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=2e-5), name


def test_label_anchors_format():
    model = tiny_fcos()
    features = [torch.zeros(2, 32, 64 // s, 96 // s) for s in STRIDES.values()]
    anchors = model.anchor_generator(features)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in [BATCH[0], EMPTY]])
    points = 8 * 12 + 4 * 6 + 2 * 3
    assert [x.shape for x in labels] == [(points,)] * 2
    assert [x.shape for x in boxes] == [(points, 4)] * 2
    assert set(labels[0].tolist()) == {0, 1, 2, K}
    assert labels[1].eq(K).all()
    # cell (4, 8) of p3 is the point (68, 36), which only the fourth object's centre square holds
    assert labels[0][4 * 12 + 8] == 0
    assert boxes[0][4 * 12 + 8].tolist() == [60, 30, 72, 44]


def test_anchor_is_a_square_of_one_stride_around_the_point():
    anchors = tiny_fcos().anchor_generator([torch.zeros(1, 1, 2, 2)] * 3)
    assert anchors[0].tensor[1].tolist() == [8, 0, 16, 8]
    assert anchors[2].get_centers()[2].tolist() == [16, 48]


@pytest.mark.parametrize("batch", [[EMPTY], [EMPTY, EMPTY], [EMPTY, BATCH[0]]])
def test_images_without_objects_train(batch):
    model = tiny_fcos()
    losses = model(batch)
    sum(losses.values()).backward()
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_centerness"}
    assert all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if batch[-1] is EMPTY:
        assert losses["loss_box_reg"] == 0 and losses["loss_centerness"] == 0
        assert losses["loss_cls"] > 0
        assert not model.head.bbox_pred.weight.grad.any()


def test_same_graph_with_and_without_objects():
    def reached(batch):
        model = tiny_fcos()
        sum(model(batch).values()).backward()
        return [n for n, p in model.named_parameters() if p.grad is not None]

    assert reached([EMPTY]) == reached([BATCH[0]])


def test_duplicated_batch_has_equal_losses():
    model = tiny_fcos()
    once, twice = model(BATCH), model(BATCH + BATCH)
    for name in once:
        torch.testing.assert_close(once[name], twice[name])


def test_order_of_objects_does_not_matter():
    model = tiny_fcos()
    flipped = dict(BATCH[0], instances=BATCH[0]["instances"][torch.tensor([3, 1, 0, 2])])
    for a, b in zip(model(BATCH[:1]).values(), model([flipped]).values(), strict=True):
        assert torch.equal(a, b)


def test_normalisers_are_means_over_gpus(monkeypatch):
    """Twice as many positives on the other GPU: the mean is 1.5 times ours."""
    model = tiny_fcos()
    alone = model(BATCH)
    monkeypatch.setattr(fcos_module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.mul_(3))
    for name, value in model(BATCH).items():
        torch.testing.assert_close(value, alone[name] / 1.5)


def test_a_foreign_assignment_is_used():
    model = tiny_fcos()
    points = sum((64 // s) * (96 // s) for s in STRIDES.values())
    calls = []

    def label_anchors(anchors, gt_instances):
        calls.append(len(gt_instances))
        # object far away from most points, without area, and some points ignored
        labels = torch.full((points,), 1)
        labels[:10] = -1
        return [labels] * 2, [torch.tensor([[5.0, 5, 5, 30]]).expand(points, 4)] * 2

    model.label_anchors = label_anchors
    losses = model([BATCH[0], BATCH[0]])
    sum(losses.values()).backward()
    assert calls == [2]
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_losses_are_float32_under_autocast():
    model = tiny_fcos()
    plain = model(BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(BATCH)
        _, distances, _ = model.head([torch.rand(1, 32, 4, 4)] * 3)
    assert all(v.dtype == torch.float32 for v in losses.values())
    assert all(d.dtype == torch.float32 for d in distances)
    for name in plain:
        torch.testing.assert_close(losses[name], plain[name], rtol=0.02, atol=0.01)


def test_gradient_reaches_only_positive_boxes():
    model = tiny_fcos()
    nn.init.constant_(model.head.bbox_pred.bias, 0.5)
    images = model.preprocess_image(BATCH)
    features = list(model.backbone(images.tensor).values())
    predictions = [[x.detach().requires_grad_() for x in level] for level in model.head(features)]
    gt = [x["instances"] for x in BATCH]
    sum(model.forward_training(images, features, predictions, gt).values()).backward()
    labels, _ = model.label_anchors(model.anchor_generator(features), gt)
    positive = (torch.stack(labels) != K).sum()
    touched = sum(x.grad.abs().sum(1).ne(0).sum() for x in predictions[1])
    centerness = sum(x.grad.ne(0).sum() for x in predictions[2])
    assert 0 < touched <= positive and centerness == positive
    assert all(x.grad.ne(0).all() for x in predictions[0])


# ---- head


def head_of(channels=64, levels=5, **kwargs):
    shapes = [ShapeSpec(channels=channels, stride=8 * 2**i) for i in range(levels)]
    return FCOSHead(input_shape=shapes, num_classes=K, **kwargs)


def test_parameter_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in head_of().named_parameters()}
    expected = {}
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in (0, 3, 6, 9):
            expected[f"{tower}.{i}.weight"] = (64, 64, 3, 3)
            expected[f"{tower}.{i}.bias"] = (64,)
            expected[f"{tower}.{i + 1}.weight"] = (64,)
            expected[f"{tower}.{i + 1}.bias"] = (64,)
    for name, channels in (("cls_score", K), ("bbox_pred", 4), ("centerness", 1)):
        expected[f"{name}.weight"] = (channels, 64, 3, 3)
        expected[f"{name}.bias"] = (channels,)
    expected |= {f"scales.{i}.scale": (1,) for i in range(5)}
    assert shapes == expected
    assert isinstance(head_of().cls_subnet[1], nn.GroupNorm)


def test_initial_values():
    torch.manual_seed(0)
    head = head_of()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(head.cls_score.bias, torch.full((K,), -math.log(99)))
    assert not head.bbox_pred.bias.any() and not head.centerness.bias.any()
    assert all(s.scale.item() == 1 for s in head.scales)


@pytest.mark.parametrize("norm_reg_targets", [True, False])
def test_box_output(norm_reg_targets):
    head = head_of(levels=2, norm_reg_targets=norm_reg_targets)
    nn.init.zeros_(head.bbox_pred.weight)
    head.bbox_pred.bias.data = torch.tensor([0.5, -1.0, 2.0, 0.0])
    nn.init.constant_(head.scales[1].scale, 3.0)
    _, distances, _ = head([torch.rand(1, 64, 2, 2), torch.rand(1, 64, 1, 1)])
    if norm_reg_targets:
        assert distances[0][0, :, 0, 0].tolist() == [4, 0, 16, 0]
        assert distances[1][0, :, 0, 0].tolist() == [24, 0, 96, 0]
    else:
        expected = (3 * head.bbox_pred.bias).exp()
        torch.testing.assert_close(distances[1][0, :, 0, 0], expected)


@pytest.mark.parametrize("on_reg", [True, False])
def test_centerness_tower(on_reg):
    head = head_of(levels=1, num_convs=1, centerness_on_reg=on_reg)
    _, _, centerness = head([torch.rand(1, 64, 4, 4)])
    centerness[0].sum().backward()
    assert (head.bbox_subnet[0].weight.grad is not None) == on_reg
    assert (head.cls_subnet[0].weight.grad is not None) == (not on_reg)


@pytest.mark.parametrize("norm", ["", "BN", "LN"])
def test_other_norms(norm):
    head = head_of(channels=20, levels=2, num_convs=2, norm=norm)
    outputs = head([torch.rand(2, 20, 4, 4), torch.rand(2, 20, 2, 2)])
    assert [len(x) for x in outputs] == [2, 2, 2]
    if norm == "BN":
        assert isinstance(head.cls_subnet[1], CycleBatchNormList)
        assert len(head.cls_subnet[1]) == 2
        assert head.cls_subnet[1].weight.requires_grad
    if not norm:
        assert [type(m).__name__ for m in head.cls_subnet] == ["Conv2d", "ReLU"] * 2


def test_group_norm_needs_divisible_channels():
    with pytest.raises(ValueError, match="cannot divide 48 channels.*FPN.OUT_CHANNELS"):
        head_of(channels=48)


def test_levels_must_be_equally_wide():
    shapes = [ShapeSpec(channels=32, stride=8), ShapeSpec(channels=64, stride=16)]
    with pytest.raises(ValueError, match=r"equal channels.*\[32, 64\]"):
        FCOSHead(input_shape=shapes, num_classes=K)


# ---- inference


def slow_inference(model, predictions, image_size, topk):
    """Detections of image 0 with one number at a time: sorted (score, class, box)."""
    boxes, scores, classes = [], [], []
    for level, stride in enumerate(STRIDES.values()):
        logits, distances, centerness = (p[level][0] for p in predictions)
        height, width = logits.shape[-2:]
        candidates = [
            (1 / (1 + math.exp(-logits[k, i, j].item())), k, i, j)
            for k in range(K)
            for i in range(height)
            for j in range(width)
        ]
        candidates.sort(reverse=True)
        for p, k, i, j in candidates[: min(topk, height * width)]:
            if p <= model.test_score_thresh:
                continue
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            left, top, right, bottom = distances[:, i, j].tolist()
            boxes.append([x - left, y - top, x + right, y + bottom])
            scores.append(math.sqrt(p / (1 + math.exp(-centerness[0, i, j].item()))))
            classes.append(k)
    boxes, scores, classes = torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes)
    kept = []
    for k in range(K):
        of_class = torch.where(classes == k)[0]
        kept.append(of_class[nms(boxes[of_class], scores[of_class], model.test_nms_thresh)])
    kept = torch.cat(kept)
    kept = kept[scores[kept].argsort(descending=True)][: model.max_detections_per_image]
    return boxes[kept], scores[kept], classes[kept]


@pytest.mark.parametrize("topk, threshold, limit", [(1000, 0.0, 1000), (20, 0.45, 30), (5, 0.5, 8)])
def test_inference_equals_loops_and_leaves_predictions_alone(topk, threshold, limit):
    model = tiny_fcos(
        test_topk_candidates=topk, test_score_thresh=threshold, max_detections_per_image=limit
    ).eval()
    generator = torch.Generator().manual_seed(0)
    features = [torch.zeros(2, 32, 64 // s, 96 // s) for s in STRIDES.values()]
    predictions = tuple(
        [torch.randn(2, c, *f.shape[-2:], generator=generator) for f in features] for c in (K, 4, 1)
    )
    predictions = (predictions[0], [(x.abs() + 0.5) * 10 for x in predictions[1]], predictions[2])
    before = [x.clone() for level in predictions for x in level]
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (64, 64)])
    results = model.forward_inference(images, features, predictions)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [x for level in predictions for x in level], strict=True)
    )
    assert [r.image_size for r in results] == images.image_sizes
    boxes, scores, classes = slow_inference(model, predictions, (64, 96), topk)
    assert 0 < len(scores) <= limit
    torch.testing.assert_close(results[0].scores, scores)
    torch.testing.assert_close(results[0].pred_boxes.tensor, boxes)
    assert torch.equal(results[0].pred_classes, classes)


def test_nothing_found():
    model = tiny_fcos(test_score_thresh=0.99).eval()
    result = model([{"image": BATCH[0]["image"]}])[0]["instances"]
    assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 4)


def test_outputs_are_in_the_requested_size():
    model = tiny_fcos().eval()
    nn.init.constant_(model.head.bbox_pred.bias, 0.5)
    result = model([{"image": BATCH[0]["image"], "height": 128, "width": 192}])[0]["instances"]
    assert result.image_size == (128, 192) and len(result) > 0
    assert result.pred_boxes.tensor.amax() > 100


# ---- config


def fcos_cfg():
    cfg = get_cfg()
    add_fcos_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FCOS.NUM_CLASSES = K
    return cfg


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
