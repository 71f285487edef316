import pytest
import torch
from detectron2.layers import ShapeSpec
from lgd_cases import annotate, shapes, teacher, view

from kd_d2 import get_kd_cfg
from kd_d2.modeling.teachers import build_teacher
from kd_d2.projects.lgd import InstructiveFeatures, LabelEncoder, check_lgd_config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ENCODER", "pointnet", "one of PointNet, MLP"),
        ("LABEL_FORMAT", "onehot", "one of one_hot, norm_classes"),
        ("INTERACT_PATTERN", "both", "one of stuGuided, labelGuided, student_fill, teacher_fill"),
        ("NUM_HEADS", 0, "positive whole number"),
        ("LAMBDA", -1.0, "LAMBDA is -1.0; it must be a number of at least 0"),
        ("LAMBDA", None, "LAMBDA is None"),
        ("LAMBDA", float("inf"), "LAMBDA is inf"),
        ("PRE_NONDISTILL", "soon", 'iterations, a fraction below 1, "auto"'),
        ("PRE_NONDISTILL", -3, "PRE_NONDISTILL: A phase length"),
        ("POST_NONDISTILL", 1.5, "POST_NONDISTILL: A phase length"),
        ("POST_NONDISTILL", "auto", "POST_NONDISTILL: A phase length"),
        ("POST_NONDISTILL", float("inf"), "POST_NONDISTILL is inf; it must be finite"),
        ("PRE_NONDISTILL", float("inf"), "PRE_NONDISTILL is inf; it must be finite"),
        ("ADD_CONTEXT_BOX", None, "ADD_CONTEXT_BOX is None; it must be True or False"),
        ("LOAD_LABELMAP", True, "MODEL.MASK_ON True"),
    ],
)
def test_wrong_values_are_refused(key, value, message):
    cfg = get_kd_cfg()
    check_lgd_config(cfg)
    cfg.MODEL.KD.LGD[key] = value
    with pytest.raises(ValueError, match=message):
        check_lgd_config(cfg)


@pytest.mark.parametrize("value", [None, 0, 700, 0.4, "auto"])
def test_start_takes_iterations_a_fraction_or_a_word(value):
    cfg = get_kd_cfg()
    cfg.merge_from_list(["MODEL.KD.LGD.PRE_NONDISTILL", value])
    check_lgd_config(cfg)
    head = InstructiveFeatures(cfg, shapes(8), shapes(8))
    expected = {None: round(cfg.SOLVER.MAX_ITER / 6), 0.4: round(0.4 * cfg.SOLVER.MAX_ITER)}
    assert head.start == expected.get(value, value)
    assert head.post == 0


def test_paper_phases():
    cfg = get_kd_cfg()
    cfg.SOLVER.MAX_ITER = 180000
    cfg.MODEL.KD.LGD.POST_NONDISTILL = 50000
    head = InstructiveFeatures(cfg, shapes(8), shapes(8))
    assert (head.start, head.post) == (30000, 50000)


def test_a_start_beyond_the_end_is_told(caplog):
    InstructiveFeatures(
        student_shapes=shapes(8), teacher_shapes=shapes(8), max_iter=900, start=30000
    )
    assert "will never see it" in caplog.text


class Student:
    """What a teacher reads of the student's stages."""

    def __init__(self, channels, num_classes):
        self.feature_shapes = shapes(channels)
        self.num_classes = num_classes


def test_teacher_from_config():
    cfg = get_kd_cfg()
    lgd = cfg.MODEL.KD.LGD
    cfg.MODEL.KD.TEACHER.NAME = "LabelEncoder"
    lgd.ENCODER, lgd.ADD_CONTEXT_BOX, lgd.NUM_HEADS = "MLP", False, 4
    lgd.DETACH_APPEARANCE_EMBED, lgd.INTERACT_PATTERN = True, "labelGuided"
    built = build_teacher(cfg, Student(64, 20))
    assert isinstance(built, LabelEncoder)
    assert built.label_encoder_.fc1.in_features == 24
    assert (built.context_box, built.detach_appearance) == (False, True)
    assert built.interact_pattern == "labelGuided" and built.multi_head_attn.num_heads == 4
    assert list(built.feature_shapes) == ["p3", "p4", "p5", "p6", "p7"]
    out = built([], [annotate([[0, 0, 50, 50]], [19])], view(1, 64))
    assert [x.shape[1] for x in out.features.values()] == [64] * 5


def test_shape_errors_name_the_shapes():
    uneven = {"a": ShapeSpec(channels=64, stride=8), "b": ShapeSpec(channels=32, stride=16)}
    with pytest.raises(ValueError, match=r"a \(64 channels, stride 8\), b \(32 channels"):
        LabelEncoder(feature_shapes=uneven, num_classes=3)
    with pytest.raises(ValueError, match="NUM_HEADS is 8 and must divide the student's 60"):
        LabelEncoder(feature_shapes=shapes(60), num_classes=3)
    with pytest.raises(ValueError, match="64 channels.*teacher p3 .32 channels"):
        InstructiveFeatures(student_shapes=shapes(64), teacher_shapes=shapes(32), max_iter=9)


# ------------------------------------------------------------------- names and counts of weights


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    lgd = teacher()
    assert count(lgd) == 8_304_336
    assert count(lgd.label_encoder_) == 4_893_392
    assert count(lgd.label_encoder_.stn_desc) == 2_615_376
    assert count(lgd.label_encoder_.stn_feat) == 1_853_376
    assert count(teacher(label_maps=True)) == 11_043_289
    head = InstructiveFeatures(student_shapes=shapes(), teacher_shapes=shapes(), max_iter=9)
    assert count(head) == 1_770_240


def test_names_and_shapes_of_the_release():
    k = 84
    expected = {}
    for stn, n in (("stn_desc", k), ("stn_feat", 64)):
        expected |= {
            f"label_encoder_.{stn}.{layer}": shape
            for layer, shape in {
                "conv1": (64, n, 1),
                "conv2": (128, 64, 1),
                "conv3": (1024, 128, 1),
                "fc1": (512, 1024),
                "fc2": (256, 512),
                "fc3": (n * n, 256),
            }.items()
        }
    expected |= {
        "label_encoder_.conv1": (64, k, 1),
        "label_encoder_.conv2": (128, 64, 1),
        "label_encoder_.conv3": (1024, 128, 1),
        "label_encoder_.conv4": (256, 1088, 1),
        "canoni_proj_1D.0.0": (256, 256),
        "student_proj_2D.0.0": (256, 256, 3, 3),
        "multi_head_attn.out_proj": (256, 256),
        "local_inst_proj_1D": (256, 256),
        "local_inst_proj_2D": (256, 256, 3, 3),
        "global_ctx_proj_1D": (256, 256),
        "refinement_module.0": (256, 256, 3, 3),
        "refinement_module.3": (256, 256, 3, 3),
        "refinement_module.6": (256, 256, 3, 3),
    }
    entries = {f"{name}.weight": shape for name, shape in expected.items()}
    entries |= {f"{name}.bias": shape[:1] for name, shape in expected.items()}
    entries |= {
        "multi_head_attn.in_proj_weight": (768, 256),
        "multi_head_attn.in_proj_bias": (768,),
    }
    # What is not used keeps its place, so that one checkpoint fits all settings.
    for options in ({}, {"context_box": False}, {"interact_pattern": "student_fill"}):
        state = teacher(**options).state_dict()
        assert {name: tuple(x.shape) for name, x in state.items()} == entries


def test_names_of_the_adapter():
    head = InstructiveFeatures(student_shapes=shapes(), teacher_shapes=shapes(), max_iter=9)
    names = {f"distill.adapter.{i}.{x}" for i in (0, 2, 4) for x in ("weight", "bias")}
    assert set(head.state_dict()) == names


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, set()),
        ({"context_box": False}, {"global_ctx_proj_1D"}),
        ({"interact_pattern": "labelGuided"}, set()),
        (
            {"interact_pattern": "student_fill"},
            {"label_encoder_", "canoni_proj_1D", "multi_head_attn"},
        ),
        ({"interact_pattern": "teacher_fill"}, {"student_proj_2D", "multi_head_attn"}),
    ],
)
@pytest.mark.parametrize(
    "gt", [[annotate([[0, 0, 60, 60]], [0])], [annotate()]], ids=["one", "none"]
)
def test_every_trainable_parameter_is_in_every_graph(options, frozen, gt):
    """DDP without find_unused_parameters hangs otherwise."""
    lgd = teacher(channels=16, num_classes=3, **options)
    out = lgd([], gt, view(1, 16))
    sum(z.square().sum() for z in out.features.values()).backward()
    for name, p in lgd.named_parameters():
        used = name.split(".")[0] not in frozen
        assert p.requires_grad == used, name
        assert (p.grad is not None) == used, name
        assert p.grad is None or torch.isfinite(p.grad).all()
