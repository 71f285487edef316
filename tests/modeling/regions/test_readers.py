"""What either side sees in regions, and what is run for that."""

import pytest
import torch
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from region_cases import RCNNS, batch_for, both_views, distiller
from tiny_models import build, random_batch

from kd_d2.modeling.regions.choosing import RegionSettings
from kd_d2.modeling.regions.seen import Regions
from kd_d2.modeling.stages import build_stages
from kd_d2.modeling.views import Stage, ViewRequest

ALL_HEADS = ("SGFI", "CKD", "RoIClassKD")


def calls(module):
    count = []
    module.register_forward_hook(lambda *args: count.append(1))
    return count


@pytest.mark.parametrize("student", RCNNS)
def test_an_rcnn_sees_on_its_way_what_it_would_see_again(student, frozen_cfg):
    model = distiller(frozen_cfg, student, "FasterRCNN", ALL_HEADS)
    view, _ = both_views(model, batch_for(student))
    reader, words = model.stages.regions, {"pooled", "vectors", "predictions"}
    own = reader.own(view, None, words)
    again = reader.read(view, own.regions, words)
    assert len(own.regions) == 32 and own.regions.counts == [16, 16]
    for name in ("vectors", "logits", "deltas"):
        assert torch.allclose(getattr(own, name), getattr(again, name), atol=1e-4), name
    assert again.pooled.shape == (32, 32, 7, 7) and own.vectors.shape == (32, 32)
    assert own.logits.shape == (32, 4)
    assert own.deltas.shape == (32, 1 if student == "CascadeRCNN" else 3, 4)


@pytest.mark.parametrize("student", RCNNS)
def test_nothing_of_a_student_is_run_twice(student, frozen_cfg, storage):
    model = distiller(frozen_cfg, student, "FasterRCNN", ALL_HEADS)
    pooler = model.student.roi_heads.box_pooler
    count = calls(pooler), calls(model.student.backbone)
    model(batch_for(student))
    assert list(map(len, count)) == [3 if student == "CascadeRCNN" else 1, 1]


def test_a_teacher_runs_what_is_asked_for(frozen_cfg, storage):
    """No proposals of its own, and no box head for pooled features."""
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ["SGFI"])
    detector = model.teacher.detector
    rpn, head = calls(detector.proposal_generator), calls(detector.roi_heads.box_head)
    model(random_batch())
    assert not rpn and not head
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ALL_HEADS)
    detector = model.teacher.detector
    pooler, head = calls(detector.roi_heads.box_pooler), calls(detector.roi_heads.box_head)
    model(random_batch())
    assert len(pooler) == len(head) == 1


def test_vectors_are_those_before_the_relu(frozen_cfg):
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ["CKD"])
    student, teacher = both_views(model, random_batch())
    for view, detector in ((student, model.student), (teacher, model.teacher.detector)):
        heads = detector.roi_heads
        boxes = student.regions.regions.per_image()
        pooled = heads.box_pooler([view.features[f] for f in heads.box_in_features], boxes)
        before = heads.box_head.fc1(heads.box_head.flatten(pooled))
        assert torch.allclose(view.regions.vectors, before, atol=1e-5) and (before < 0).any()


def test_a_teacher_s_boxes_are_not_rounded_in_half_precision(frozen_cfg):
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ["SGFI"])
    seen = []
    for pooler in model.teacher.detector.roi_heads.box_pooler.level_poolers:
        pooler.register_forward_pre_hook(lambda m, args: seen.extend(args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both_views(model, random_batch())
    assert seen and {x.dtype for x in seen} == {torch.float32}


def test_the_teacher_is_a_constant(frozen_cfg):
    model = distiller(frozen_cfg, "FasterRCNN", "FasterRCNN", ALL_HEADS)
    student, teacher = both_views(model, random_batch())
    assert not teacher.regions.pooled.requires_grad and not teacher.regions.vectors.requires_grad
    assert not student.regions.regions.boxes.requires_grad
    assert student.regions.vectors.requires_grad


@pytest.mark.parametrize("student", ["RetinaNet", "FCOS", "GFL", "DDOD"])
def test_a_location_s_vector_is_that_of_its_cell(student, frozen_cfg):
    model = distiller(frozen_cfg, student, "FasterRCNN", ["CKD"], BATCH_SIZE_PER_IMAGE=30)
    view, _ = both_views(model, random_batch())
    seen, towers = view.regions, view.taps["cls_tower.last"]
    per_cell = model.stages.locations_per_cell()
    for r in range(0, len(seen.regions), 5):
        location = seen.regions.locations[r].item()
        for tower in towers:
            h, w = tower.shape[2:]
            if location < h * w * per_cell:
                break
            location -= h * w * per_cell
        cell, anchor = divmod(location, per_cell)
        image = seen.regions.images[r]
        assert torch.equal(seen.vectors[r], tower[image, :, cell // w, cell % w])
        assert seen.anchors[r] == anchor
        box = view.decoded.boxes[image, seen.regions.locations[r]].clamp(min=0)
        size = torch.tensor(view.images.image_sizes[image]).flip(0).repeat(2)
        assert torch.allclose(seen.regions.boxes[r], box.minimum(size), atol=1e-4)


def test_levels_by_the_size_of_the_box(tiny_cfg):
    """224 pixels belong to stride 16; clamped to the levels that are pooled."""
    sides = torch.tensor([8.0, 32, 111, 112, 223, 224, 448, 600, 2000])
    boxes = torch.cat((torch.zeros(9, 2), sides[:, None].repeat(1, 2)), 1)
    regions = Regions.of_images([boxes], [torch.ones(9, dtype=torch.bool)])
    expected = {
        "FasterRCNN": [4, 4, 4, 8, 8, 16, 32, 32, 32],
        "RetinaNet": [8, 8, 8, 8, 8, 16, 32, 32, 128],
    }
    for arch, strides in expected.items():
        stages = build_stages(build(tiny_cfg(arch)))
        reader = stages.open_regions(RegionSettings(), "teacher")
        assert reader.strides_of(regions).tolist() == strides
        assert reader.strides_of(Regions.of_images([boxes[:0]], [boxes[:0, 0] > 0])).shape == (0,)


def test_a_dense_teacher_pools_from_one_level(frozen_cfg):
    model = distiller(frozen_cfg, "FasterRCNN", "RetinaNet", ["SGFI"])
    _, teacher = both_views(model, random_batch())
    pooler, regions = model.teacher.stages.regions.pooler, teacher.regions.regions
    levels = assign_boxes_to_levels(regions.per_image(), 3, 7, 224, 4)
    names, rois = list(teacher.features), regions.rois()
    assert len(pooler.level_poolers) == 5
    for r in range(0, len(regions), 7):
        align, feature = pooler.level_poolers[levels[r]], teacher.features[names[levels[r]]]
        assert torch.allclose(teacher.regions.pooled[r], align(feature, rois[r : r + 1])[0])
        assert teacher.regions.strides[r] == 8 * 2 ** levels[r]


@pytest.mark.parametrize("student", ["FasterRCNN", "CascadeRCNN", "FCOS"])
def test_foreground_alone(student, frozen_cfg):
    model = distiller(frozen_cfg, student, "FasterRCNN", ["CKD", "SGFI"], SUBSET="foreground")
    batch = random_batch(objects=(3, 0))
    student_view, teacher = both_views(model, batch)
    regions = student_view.regions.regions
    assert regions.foreground.all() and regions.counts[1] == 0
    assert len(student_view.regions.vectors) == len(teacher.regions.vectors) == len(regions)
    assert len(teacher.regions.pooled) == len(teacher.regions.strides) == len(regions)


@pytest.mark.parametrize("student", ["FasterRCNN", "RetinaNet"])
@pytest.mark.parametrize("teacher", ["FasterRCNN", "FCOS"])
@pytest.mark.parametrize("source", ["teacher", "gt_jitter"])
def test_regions_of_others(student, teacher, source, frozen_cfg):
    heads = ["SGFI", "CKD"] if student == teacher else ["SGFI"]
    model = distiller(frozen_cfg, student, teacher, heads, SOURCE=source, JITTERED_PER_OBJECT=3)
    own, other = both_views(model, random_batch(objects=(2, 1)))
    regions = own.regions.regions
    assert regions is other.regions.regions and len(regions) > 0
    if source == "gt_jitter":
        assert regions.counts == [6, 3]
    assert model.teacher.request.stage == (
        Stage.PREDICTIONS if source == "teacher" else Stage.FEATURES
    )
    if "CKD" in heads:
        assert own.regions.vectors.requires_grad


def test_an_unknown_family_teaches_by_its_features(tiny_cfg):
    """Whoever registers stages gets pooled features without a word about regions."""
    from kd_d2.modeling.regions import RegionReader

    stages = build_stages(build(tiny_cfg("FCOS")))
    reader = RegionReader(stages, RegionSettings(), "teacher")
    view = stages.run(random_batch(), ViewRequest())
    boxes = torch.tensor([[4.0, 4, 40, 40]])
    regions = Regions.of_images([boxes, boxes], [torch.ones(1, dtype=torch.bool)] * 2)
    seen = reader.read(view, regions, {"pooled"})
    assert seen.pooled.shape == (2, 32, 7, 7) and seen.strides.tolist() == [8, 8]
    assert reader.why_not({"pooled"}) == "" and "box head" in reader.why_not({"vectors"})
    assert "has none" in RegionReader(stages, RegionSettings(), "student").why_not({"boxes"})
    assert isinstance(regions.per_image()[0], Boxes)


@pytest.mark.parametrize(
    "key,value,reason",
    [
        ("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "set it to False"),
        ("ROI_BOX_HEAD.NUM_FC", 0, "set MODEL.ROI_BOX_HEAD.NUM_FC"),
    ],
)
def test_students_whose_regions_cannot_be_read(key, value, reason, frozen_cfg):
    cfg = frozen_cfg("FasterRCNN", "FasterRCNN")
    cfg.MODEL.KD.HEADS = ["CKD"]
    if value == 0:
        cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=reason) as error:
        build(cfg)
    assert str(error.value).startswith("CKD (MODEL.KD.HEADS) does not serve here: ")
