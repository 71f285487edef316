"""Names of the authors' checkpoints: each is used, or dropped for a reason."""

from collections import Counter

import pytest
import torch
from convert_cases import convert, convert_config
from official_lgd import official_file, official_state, perturb

from kd_d2.checkpoint import CheckpointError, read_checkpoint
from kd_d2.checkpoint.converters import CHECKPOINT_CONVERTERS, convert_checkpoint, misfit
from kd_d2.modeling.views import Stage, ViewRequest

ARCHS = ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN"]


@pytest.mark.parametrize("old_buffers", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_student_and_teacher_compute_the_same(
    arch, old_buffers, lgd_cfg, build, build_other, random_batch
):
    cfg = convert_config(lgd_cfg, arch)
    source = perturb(build(cfg)).eval()
    state = official_state(source, old_buffers)
    model = build_other(cfg).eval()
    result = convert(state, model)

    own = source.state_dict()
    assert result.state.keys() == own.keys() == model.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert len(result.used) == len(own)
    assert result.used.keys() | result.dropped.keys() == state.keys()
    pyramid = [k for k in own if ".fpn_" in k or ".top_block." in k]
    constants = len(state) - len(own) - len(pyramid)
    assert (constants > 0) == old_buffers
    reasons = Counter(result.dropped.values())
    assert sorted(reasons.values()) == sorted(filter(None, [len(pyramid), constants]))

    batch = random_batch(masks=True)
    inputs = [{k: x[k] for k in ("image", "height", "width")} for x in batch]
    gt = [x["instances"] for x in batch]
    with torch.no_grad():
        for ours, theirs in zip(model(inputs), source(inputs), strict=True):
            assert len(ours["instances"]) > 0
            for name, value in ours["instances"].get_fields().items():
                value = getattr(value, "tensor", value)
                other = theirs["instances"].get(name)
                assert torch.equal(value, getattr(other, "tensor", other)), name
        z = []
        for m in (model, source):
            view = m.stages.run(batch, ViewRequest(Stage.FEATURES), gt)
            z.append(m.teacher.instruct(view.features, gt, view.images))
    assert z[0].keys() == z[1].keys() and len(z[0]) == 5
    assert all(torch.equal(z[0][k], z[1][k]) for k in z[0])


# The format, measured with the authors' code on R-50, 80 classes and a current Detectron2: numbers
# of entries, and shapes of some.
ZOO = {
    "RetinaNet": ("COCO-Detection/retinanet_R_50_FPN_1x", "RetinaNet", 375),
    "FCOS": ("LGD/fcos_r50_2x_ms.yaml", "FCOS", 398),
    "FasterRCNN": ("COCO-Detection/faster_rcnn_R_50_FPN_1x", "GeneralizedRCNN", 369),
    "MaskRCNN": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "GeneralizedRCNN", 381),
}
STUDENT_ENTRIES = {
    "RetinaNet": {
        "student.fpn.fpn_lateral3.weight": (256, 512, 1, 1),
        "student.backbone.fpn_lateral5.weight": (256, 2048, 1, 1),
        "student.backbone.top_block.p6.weight": (256, 2048, 3, 3),
        "student.head.cls_subnet.6.weight": (256, 256, 3, 3),
        "student.head.cls_score.weight": (720, 256, 3, 3),
        "student.head.bbox_pred.weight": (36, 256, 3, 3),
    },
    "FCOS": {
        "student.fpn.top_block.p7.bias": (256,),
        **{f"student.head.cls_subnet.{i}.weight": (256, 256, 3, 3) for i in (0, 3, 6, 9)},
        **{f"student.head.bbox_subnet.{i}.weight": (256,) for i in (1, 4, 7, 10)},
        "student.head.cls_score.weight": (80, 256, 3, 3),
        "student.head.bbox_pred.weight": (4, 256, 3, 3),
        "student.head.centerness.weight": (1, 256, 3, 3),
        **{f"student.head.scales.{i}.scale": (1,) for i in range(5)},
    },
    "FasterRCNN": {
        "student.fpn.fpn_lateral2.weight": (256, 256, 1, 1),
        "student.proposal_generator.rpn_head.conv.weight": (256, 256, 3, 3),
        "student.proposal_generator.rpn_head.objectness_logits.weight": (3, 256, 1, 1),
        "student.proposal_generator.rpn_head.anchor_deltas.weight": (12, 256, 1, 1),
        "student.roi_heads.box_head.fc1.weight": (1024, 12544),
        "student.roi_heads.box_head.fc2.weight": (1024, 1024),
        "student.roi_heads.box_predictor.cls_score.weight": (81, 1024),
        "student.roi_heads.box_predictor.bbox_pred.weight": (320, 1024),
    },
    "MaskRCNN": {"student.roi_heads.mask_head.mask_fcn4.weight": (256, 256, 3, 3)},
}


def entries_of_all(k):
    """Of any R-50 student whose labels have ``k`` numbers."""
    linear, conv = (256, 256), (256, 256, 3, 3)
    encoder = {
        "stn_desc.conv1": (64, k, 1),
        "stn_desc.conv2": (128, 64, 1),
        "stn_desc.conv3": (1024, 128, 1),
        "stn_desc.fc1": (512, 1024),
        "stn_desc.fc2": (256, 512),
        "stn_desc.fc3": (k * k, 256),
        "stn_feat.conv1": (64, 64, 1),
        "stn_feat.fc3": (4096, 256),
        "conv1": (64, k, 1),
        "conv4": (256, 1088, 1),
    }
    return {
        "student.raw_backbone.stem.conv1.weight": (64, 3, 7, 7),
        "student.raw_backbone.stem.conv1.norm.running_var": (64,),
        "student.raw_backbone.res2.0.conv1.weight": (64, 64, 1, 1),
        "student.raw_backbone.res5.2.conv3.norm.bias": (2048,),
        **{f"teacher.label_encoder_.{name}.weight": shape for name, shape in encoder.items()},
        "teacher.canoni_proj_1D.0.0.weight": linear,
        "teacher.student_proj_2D.0.0.weight": conv,
        "teacher.multi_head_attn.in_proj_weight": (768, 256),
        "teacher.multi_head_attn.in_proj_bias": (768,),
        "teacher.multi_head_attn.out_proj.weight": linear,
        "teacher.local_inst_proj_1D.weight": linear,
        "teacher.local_inst_proj_2D.weight": conv,
        "teacher.global_ctx_proj_1D.bias": (256,),
        **{f"teacher.refinement_module.{i}.weight": conv for i in (0, 3, 6)},
        **{f"adapter.distill.adapter.{i}.weight": conv for i in (0, 2, 4)},
    }


def official_size(arch, build):
    """The distiller that the authors trained, without storage."""
    from kd_d2 import get_kd_cfg
    from kd_d2.model_zoo import resolve_config_file

    name, student, _ = ZOO[arch]
    cfg = get_kd_cfg()
    cfg.merge_from_file(resolve_config_file(name), allow_unsafe=True)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.META_ARCHITECTURE = "LabelGuidedDistiller"
    cfg.MODEL.KD.STUDENT = student
    cfg.MODEL.KD.TEACHER.NAME, cfg.MODEL.KD.HEADS = "LabelEncoder", ["InstructiveFeatures"]
    cfg.MODEL.KD.LGD.LOAD_LABELMAP = arch == "MaskRCNN"
    with torch.device("meta"):
        return build(cfg)


@pytest.mark.parametrize("arch", ARCHS)
def test_entries_of_the_authors_files(arch, build):
    """Without Detectron2 0.3's constants, and with the pyramid twice, as the count was taken."""
    state = official_state(official_size(arch, build))
    assert len(state) == ZOO[arch][2]
    expected = STUDENT_ENTRIES[arch] | entries_of_all(133 if arch == "MaskRCNN" else 84)
    assert {k: tuple(state[k].shape) for k in expected} == expected


def test_deformable_blocks(lgd_cfg, build, build_other):
    cfg = convert_config(lgd_cfg)
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    state = official_state(perturb(build(cfg)))
    assert state["student.raw_backbone.res5.2.conv2_offset.weight"].shape[0] == 27
    result = convert(state, build_other(cfg))
    theirs = "student.raw_backbone.res3.0.conv2_offset.bias"
    assert result.used[theirs] == "student.backbone.bottom_up.res3.0.conv2_offset.bias"
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    with pytest.raises(CheckpointError, match=r"DEFORM_ON_PER_STAGE \(\[False, True, True, True\]"):
        convert(state, build_other(cfg))
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = False
    with pytest.raises(CheckpointError, match=r"DEFORM_MODULATED \(True in the file, False in"):
        convert(state, build_other(cfg))


def test_the_student_alone(lgd_cfg, build, build_other):
    from kd_d2.config.student import student_config

    cfg = convert_config(lgd_cfg)
    source = perturb(build(cfg))
    state = official_state(source, old_buffers=True)
    student = build_other(student_config(cfg))
    result = convert(state, student)
    own = source.student.state_dict()
    assert result.state.keys() == own.keys()
    assert all(torch.equal(value, own[k]) for k, value in student.state_dict().items())
    assert result.used["student.raw_backbone.res2.0.conv1.weight"].startswith("backbone.bottom_up.")
    assert set(result.used.values()) == set(own)
    dropped = [k for k, why in result.dropped.items() if "not part of the student" in why]
    assert dropped == [k for k in state if k.startswith(("teacher.", "adapter."))] != []
    assert f"{len(dropped)} dropped: teacher and adapter" in result.summary()

    alone = {k: v for k, v in state.items() if k not in dropped}
    convert(alone, build_other(student_config(cfg)))
    with pytest.raises(CheckpointError, match="holds no teacher.*--student-only"):
        convert(alone, build_other(cfg))
    with pytest.raises(CheckpointError, match="holds no adapter.*--student-only"):
        convert({k: v for k, v in state.items() if "adapter" not in k}, build_other(cfg))
    cfg.MODEL.KD.ENABLED = False
    with pytest.raises(CheckpointError, match="model has no 'teacher.label_encoder_.*a config of"):
        convert(state, build_other(cfg))


def test_saved_inside_ddp(lgd_cfg, build, build_other):
    cfg = convert_config(lgd_cfg)
    source = build(cfg)
    state = {f"module.{k}": v for k, v in official_state(source).items()}
    assert misfit(convert(state, build_other(cfg)).state, source.state_dict()) == ""


def test_schedulers_with_counters_are_read(tmp_path):
    """torch's own MultiStepLR has one, and torch reads it without unpickling freely."""
    path = official_file(
        tmp_path / "a.pth", {"w": torch.ones(1)}, stu_scheduler={"milestones": Counter([5, 8])}
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint["stu_scheduler"]["milestones"] == {5: 1, 8: 1}
    assert checkpoint["tea_scheduler"]["base_lrs"] == [0.01] and checkpoint["iteration"] == 179999


def test_converters_are_held_to_the_rules(lgd_cfg, build, monkeypatch):
    """What a careless converter forgets is an error all the same."""
    from kd_d2.checkpoint.converters import Conversion

    model = build(convert_config(lgd_cfg))
    state = model.state_dict()

    def careless(state, model_state, constants, student_only):
        result = Conversion()
        for name, value in list(state.items())[:-1]:
            result.use(name, name, value)
        return result

    monkeypatch.setitem(CHECKPOINT_CONVERTERS._obj_map, "careless", careless)
    with pytest.raises(CheckpointError, match=r"1 entries that are neither used nor .*adapter.4.b"):
        convert_checkpoint("careless", state, model)
    del state["heads.InstructiveFeatures.distill.adapter.4.bias"]
    state["extra"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="1 entries that are neither"):
        convert_checkpoint("careless", state, model)

    def blind(state, model_state, constants, student_only):
        return Conversion(dropped=dict.fromkeys(state, "I do not like it"))

    monkeypatch.setitem(CHECKPOINT_CONVERTERS._obj_map, "blind", blind)
    with pytest.raises(
        CheckpointError, match="does not fill the model .* weights of the model are"
    ):
        convert_checkpoint("blind", state, model)
