"""Authors' checkpoints that do not fit: one sentence, and the model stays as it was."""

import pytest
import torch
from convert_cases import convert, convert_config, swin_config
from official_lgd import official_file, official_state
from tiny_models import DENSE

from kd_d2.checkpoint import CheckpointError, KDCheckpointer
from kd_d2.checkpoint.weight_settings import detector_settings


@pytest.mark.parametrize(
    "keys, words",
    [
        (
            {"MODEL.RETINANET.NUM_CLASSES": 5},
            r"other settings than the config has: MODEL.RETINANET.NUM_CLASSES \(3 in the file, 5 in"
            r" the config\); give",
        ),
        (
            {"MODEL.RESNETS.DEPTH": 34},
            r"has: MODEL.RESNETS.DEPTH \(18 in the file, 34 in the config\); give",
        ),
        ({"MODEL.FPN.OUT_CHANNELS": 64}, r"has: MODEL.FPN.OUT_CHANNELS \(32 in the file, 64 in"),
        ({"MODEL.RETINANET.NUM_CONVS": 2}, r"has: MODEL.RETINANET.NUM_CONVS \(1 in the file, 2 in"),
        ({"MODEL.KD.LGD.ENCODER": "MLP"}, r"has: MODEL.KD.LGD.ENCODER \(PointNet in the file, MLP"),
        (
            {"MODEL.KD.LGD.LABEL_FORMAT": "norm_classes"},
            r"has: MODEL.KD.LGD.LABEL_FORMAT \(one_hot in the file, norm_classes in the config\);",
        ),
        (
            {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]]},
            r"has: anchors at a cell \(6 in the file, 2 in the config\);",
        ),
        (
            {
                "MODEL.FPN.TOP_BLOCK_IN_FEATURE": "p5",
                "MODEL.BACKBONE.NAME": "build_narrow_retinanet_resnet_fpn_backbone",
            },
            r"has: MODEL.FPN.TOP_BLOCK_IN_FEATURE \(res5 in the file, p5 in the config\)",
        ),
        ({"MODEL.KD.STUDENT": "FCOS"}, r"has: detector \(RetinaNet in the file, FCOS in"),
        (
            {"MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0]},
            r"'student.pixel_mean' \(103.53, 116.28, 123.675\) and the config makes it \(1, 2, 3\):"
            r" set MODEL.PIXEL_MEAN",
        ),
        ({"MODEL.PIXEL_STD": [57.0, 57.0, 58.0]}, r"pixel_std' \(1, 1, 1\) .*set MODEL.PIXEL_STD"),
        (
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[x, x * 2] for x in (16, 32, 64, 128, 256)]},
            r"cell_anchors.0' .*shape \(6, 4\).* set MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_R",
        ),
    ],
)
def test_a_config_of_another_model(keys, words, lgd_cfg, build, build_other):
    state = official_state(build(convert_config(lgd_cfg)), old_buffers=True)
    cfg = convert_config(lgd_cfg)
    cfg.merge_from_list([x for item in keys.items() for x in item])
    with pytest.raises(CheckpointError, match=words) as error:
        convert(state, build_other(cfg))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arch, keys, words",
    [
        (
            "MaskRCNN",
            {"MODEL.KD.LGD.LOAD_LABELMAP": False},
            r"has: MODEL.KD.LGD.LOAD_LABELMAP \(True in the file, False in the config\);",
        ),
        (
            "MaskRCNN",
            {"MODEL.MASK_ON": False, "MODEL.KD.LGD.LOAD_LABELMAP": False},
            r"has: MODEL.MASK_ON \(True in the file, False in the config\), MODEL.KD.LGD.LOAD_LABE",
        ),
        (
            "FasterRCNN",
            {"MODEL.ROI_HEADS.NUM_CLASSES": 7},
            r"has: MODEL.ROI_HEADS.NUM_CLASSES \(3 in the file, 7 in the config\); give",
        ),
        (
            "FasterRCNN",
            {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True},
            r"has: MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG \(False in the file, True in the",
        ),
        (
            "FasterRCNN",
            {"MODEL.ROI_BOX_HEAD.NUM_FC": 2},
            r"has: MODEL.ROI_BOX_HEAD.NUM_FC \(1 in the file, 2 in the config\); give",
        ),
        (
            "FasterRCNN",
            {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5},
            r"does not fit .* 1 weight has another shape \(.*fc1.weight \(32, 1568\) for \(32, 800",
        ),
        ("FCOS", {"MODEL.FCOS.NORM": ""}, r"norm in the head .* \(True in the file, False in"),
        ("FCOS", {"MODEL.FCOS.NUM_CLASSES": 9}, r"has: .*NUM_CLASSES \(3 in the file, 9 in the"),
    ],
)
def test_a_config_of_another_rcnn_or_fcos(arch, keys, words, lgd_cfg, build, build_other):
    state = official_state(build(convert_config(lgd_cfg, arch)))
    cfg = convert_config(lgd_cfg, arch)
    cfg.merge_from_list([x for item in keys.items() for x in item])
    with pytest.raises(CheckpointError, match=words):
        convert(state, build_other(cfg))


@pytest.mark.parametrize("arch", DENSE)
def test_each_detector_is_known_by_its_weights(arch, tiny_cfg, build):
    settings = detector_settings(build(tiny_cfg(arch)).state_dict())
    assert settings["detector"] == arch
    node = f"MODEL.{arch.upper()}"
    assert (settings[f"{node}.NUM_CLASSES"], settings[f"{node}.NUM_CONVS"]) == (3, 1)


@pytest.mark.parametrize(
    "objectness, iou_branch", [("cop", True), ("cop", False), ("iop", True), ("iop", False)]
)
def test_paa_is_known_by_any_of_its_outputs(objectness, iou_branch, tiny_cfg, build):
    cfg = tiny_cfg("PAA")
    cfg.MODEL.PAA.OBJECTNESS, cfg.MODEL.PAA.IOU_BRANCH = objectness, iou_branch
    settings = detector_settings(build(cfg).state_dict())
    assert settings["detector"] == "PAA" and settings["MODEL.PAA.NUM_CLASSES"] == 3


def test_another_backbone(lgd_cfg, build, build_other):
    state = official_state(build(convert_config(lgd_cfg)))
    with pytest.raises(CheckpointError, match=r"has: backbone \(ResNet in the file, Swin in the"):
        convert(state, build_other(swin_config(lgd_cfg, "RetinaNet")))


def test_weights_of_too_few_dimensions(lgd_cfg, build, build_other):
    cfg = convert_config(lgd_cfg)
    state = official_state(build(cfg))
    for name in ("student.head.cls_score.weight", "teacher.label_encoder_.conv1.weight"):
        with pytest.raises(CheckpointError, match=rf"has another shape \({name} \(\) for"):
            convert(state | {name: torch.ones(())}, build_other(cfg))


def test_it_is_no_weights_of_a_model_before_it_is_converted(lgd_cfg, build, tmp_path):
    cfg = convert_config(lgd_cfg)
    path = official_file(tmp_path / "official.pth", official_state(build(cfg)))
    for model in (build(cfg), build(cfg).student):
        with pytest.raises(CheckpointError, match=f"--from lgd {path} OUT.pth --config-file"):
            KDCheckpointer(model).load(str(path))


def changed(state, **changes):
    """A copy with entries added, or left out (None)."""
    state = dict(state)
    for name, value in changes.items():
        state.pop(name)
        if value is not None:
            state[name] = value
    return state


def test_incomplete_and_strange_files(lgd_cfg, build, build_other):
    cfg = convert_config(lgd_cfg)
    state = official_state(build(cfg), old_buffers=True)
    model = build_other(cfg)
    untouched = {k: v.clone() for k, v in model.state_dict().items()}
    context = "teacher.global_ctx_proj_1D.weight"
    for wrong, words in (
        (changed(state, **{context: None}), rf"1 weight of the model is not in .*\({context}\)"),
        (
            state | {"teacher.extra.weight": torch.ones(1), "student.head.more": torch.ones(1)},
            r"2 weights in the file have no place in the model \(teacher.extra.weight, student.he",
        ),
        (
            state | {"student.ema": torch.ones(1), "epoch": torch.ones(1)},
            r"2 entries that no checkpoint of the authors' LGD has \(student.ema, epoch\)",
        ),
        (
            changed(state, **{"student.fpn.fpn_output3.bias": torch.ones(32)}),
            "'student.fpn.fpn_output3.bias' and 'student.backbone.fpn_output3.bias' .*differ",
        ),
        (
            changed(state, **{"student.backbone.fpn_output3.bias": None}),
            "should repeat 'student.backbone.fpn_output3.bias', which the file does not have",
        ),
        (
            state | {"student.backbone.bottom_up.stem.conv1.weight": torch.ones(64, 3, 7, 7)},
            "one weight twice: 'student.raw_backbone.stem.conv1.weight' and 'student.backbone.bott",
        ),
        (
            state | {"student.anchor_generator.cell_anchors.5": torch.ones(6, 4)},
            "'student.anchor_generator.cell_anchors.5' and the config's model has no such thing",
        ),
        (build(cfg).state_dict(), "is a distillation checkpoint of kd_d2 already.*MODEL.WEIGHTS"),
        (build(cfg).student.state_dict(), "a plain detector or backbone, .*MODEL.WEIGHTS"),
        ({"conv1_w": torch.ones(1)}, "a plain detector or backbone"),
        ({"encoder.w": torch.ones(1)}, "no checkpoint of the authors' LGD.*names are encoder.w"),
    ):
        with pytest.raises(CheckpointError, match=words) as error:
            convert(wrong, model)
        assert "\n" not in str(error.value)
    assert all(torch.equal(v, untouched[k]) for k, v in model.state_dict().items())
