"""ImageNet weights in the format of the original Swin release, into detectors and distillers."""

import pytest
import torch

from kd_d2.checkpoint import CheckpointError, KDCheckpointer
from kd_d2.checkpoint.swin_weights import convert_swin_release, is_swin_release
from kd_d2.modeling.backbones import Swin

TINY = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 4}
TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"
INDEX = "layers.0.blocks.0.attn.relative_position_index"


def release(**kwargs):
    """A network with random weights, and what the release would have saved of it."""
    swin = Swin(**{**TINY, **kwargs}).eval()
    with torch.no_grad():
        for p in swin.parameters():
            p.normal_(std=0.2)
        for name in ("norm0", "norm1", "norm2", "norm3"):
            getattr(swin, name).reset_parameters()
    state = {k: v for k, v in swin.state_dict().items() if not k.startswith(("norm0", "norm1"))}
    state = {k: v for k, v in state.items() if not k.startswith(("norm2", "norm3"))}
    width = swin.num_features[-1]
    state["layers.2.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    state["norm.weight"], state["norm.bias"] = torch.full((width,), 7.0), torch.full((width,), 7.0)
    state["head.weight"], state["head.bias"] = torch.ones(21841, width), torch.ones(21841)
    return swin, state


@pytest.fixture
def save(tmp_path):
    def save(state, **entries):
        torch.save({"model": state, **entries}, tmp_path / "swin.pth")
        return str(tmp_path / "swin.pth")

    return save


def as_swin(cfg, **kwargs):
    dense = "retinanet" in cfg.MODEL.BACKBONE.NAME
    cfg.MODEL.BACKBONE.NAME = f"build_{'retinanet_' if dense else ''}swin_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = -1
    for key, value in {**TINY, **kwargs}.items():
        cfg.MODEL.SWIN[key.upper()] = value
    return cfg


def features_agree(swin, detector):
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = detector.eval().backbone.bottom_up(x), swin(x)
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    "entries", [{}, {"matching_heuristics": True}], ids=["as_is", "heuristics"]
)
@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN"])
@pytest.mark.parametrize("distill", [False, True], ids=["plain", "lgd"])
def test_into_a_detector(tiny_cfg, lgd_cfg, build, save, arch, distill, entries):
    swin, state = release()
    model = build(as_swin((lgd_cfg if distill else tiny_cfg)(arch)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    checkpointer = KDCheckpointer(model)
    checkpointer.load(save(state, **entries))
    detector = model.student if distill else model
    assert features_agree(swin, detector)
    # the output norms and all outside of the backbone are as they were
    prefix = "student.backbone.bottom_up." if distill else "backbone.bottom_up."
    for name, value in model.state_dict().items():
        if not name.startswith(prefix) or name.startswith(f"{prefix}norm"):
            assert torch.equal(value, before[name]), name
    filled, _ = checkpointer.loaded_parts["student" if distill else "model"]
    raw = [k for k, _ in detector.backbone.bottom_up.named_parameters()]
    assert filled == sum(not k.startswith("norm") for k in raw)
    if distill:
        assert checkpointer.loaded_parts["teacher"][0] == checkpointer.loaded_parts["heads"][0] == 0


def test_the_order_of_positions_is_the_models_own(tiny_cfg, build, save):
    swin, state = release()
    state[INDEX] = torch.zeros_like(state[INDEX])
    detector = build(as_swin(tiny_cfg()))
    KDCheckpointer(detector).load(save(state))
    assert features_agree(swin, detector)


def test_it_says_what_it_did(tiny_cfg, build, save, caplog):
    caplog.set_level("INFO", "kd_d2")
    _, state = release()
    KDCheckpointer(build(as_swin(tiny_cfg()))).load(save(state))
    lines = [r.getMessage() for r in caplog.records]
    (line,) = (text for text in lines if "original release" in text)
    assert "Swin Transformer (embedding 12, depths 1-1-2-1)" in line
    assert "dropped the classifier's attention masks, head, norm;" in line
    assert "norms of the outputs (norm1, norm2, norm3) are not in the file" in line
    assert any(text.startswith("Loaded ImageNet weights of a Swin") for text in lines)


def test_into_a_bare_backbone_and_resuming_one(save):
    swin, state = release()
    other = Swin(**TINY)
    KDCheckpointer(other).load(save(state))
    for name, value in swin.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    # what such a backbone was saved as has trained output norms, which are not the release's
    torch.nn.init.normal_(swin.norm3.weight)
    assert not is_swin_release(swin.state_dict())
    KDCheckpointer(other).load(save(swin.state_dict()))
    assert torch.equal(other.norm3.weight, swin.norm3.weight)


def test_own_checkpoints_are_not_taken_for_a_release(tiny_cfg, build, save):
    detector = build(as_swin(tiny_cfg()))
    assert not is_swin_release(detector.state_dict())
    other = build(as_swin(tiny_cfg()))
    KDCheckpointer(other).load(save(detector.state_dict()))
    for name, value in detector.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


# ---- other sizes


def test_another_window_interpolates_the_position_tables(tiny_cfg, build, save):
    """A table that is linear in the distance stays so, away from the border."""
    _, state = release()
    ramp = torch.arange(-3.0, 4)  # differences of two positions in a window of 4
    plane = 10 * ramp[:, None] + ramp[None]
    state[TABLE] = plane.reshape(-1, 1)
    model = build(as_swin(tiny_cfg(), window_size=7))
    KDCheckpointer(model).load(save(state))
    swin = model.backbone.bottom_up
    table = swin.state_dict()[TABLE]
    assert table.shape == (13 * 13, 1)
    table = table.view(13, 13)
    # cell centres: column j of 13 lies at (j + 0.5) * 7 / 13 - 0.5 of 7
    at = (torch.arange(13) + 0.5) * 7 / 13 - 0.5 - 3
    expected = 10 * at[:, None] + at[None]
    # (bicubic with a = -0.75 follows a straight line closely, not exactly)
    assert torch.allclose(table[4:9, 4:9], expected[4:9, 4:9], atol=0.6)
    assert table[6, 6].abs() < 1e-4  # the centre is the centre, and symmetry stays
    assert torch.allclose(table, -table.flip(0, 1), atol=1e-4)
    # rows are vertical differences: ten times those of the columns
    assert torch.allclose(table[8, 6] - table[4, 6], 10 * (table[6, 8] - table[6, 4]), rtol=1e-4)
    # the index follows from the window and stays the model's
    fresh = Swin(**{**TINY, "window_size": 7})
    assert torch.equal(swin.state_dict()[INDEX], fresh.state_dict()[INDEX])
    block = swin.layers[2].blocks[1]
    assert torch.equal(block.mlp.fc1.weight, state["layers.2.blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize("pretrain_img_size", [32, 48])
def test_absolute_positions(pretrain_img_size):
    """The release keeps them as (1, patches, C), Detectron2 as planes."""
    own = Swin(**TINY, ape=True, pretrain_img_size=pretrain_img_size)
    swin, state = release(ape=True, pretrain_img_size=32)
    planes = swin.absolute_pos_embed.detach()
    state["absolute_pos_embed"] = planes.flatten(2).transpose(1, 2)
    converted = convert_swin_release(state, own.state_dict(), "file")["absolute_pos_embed"]
    assert converted.shape == own.absolute_pos_embed.shape
    if pretrain_img_size == 32:
        assert torch.equal(converted, planes)
    else:
        constant = dict(state, absolute_pos_embed=torch.full((1, 64, 12), 0.5))
        converted = convert_swin_release(constant, own.state_dict(), "file")["absolute_pos_embed"]
        assert torch.allclose(converted, torch.full((1, 12, 12, 12), 0.5))


# ---- refusals


def refusal(model, path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        KDCheckpointer(model).load(path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # nothing was loaded in part
    text = str(error.value)
    assert "swin.pth" in text and "\n" not in text
    return text


@pytest.mark.parametrize("distill", [False, True], ids=["plain", "lgd"])
def test_another_size_of_the_model(tiny_cfg, lgd_cfg, build, save, distill):
    """As Swin-S weights for Swin-T: only the depth of stage4 differs."""
    model = build(as_swin((lgd_cfg if distill else tiny_cfg)()))
    text = refusal(model, save(release(depths=[1, 1, 3, 1])[1]))
    assert "(embedding 12, depths 1-1-3-1), and the config's backbone is a Swin" in text
    assert "(embedding 12, depths 1-1-2-1): give the weights" in text


def test_the_released_sizes_have_names(save):
    wide = {"embed_dim": 96, "num_heads": [3, 6, 12, 24], "window_size": 2, "mlp_ratio": 0.1}
    with torch.device("meta"):
        small, tiny = Swin(**wide, depths=[2, 2, 18, 2]), Swin(**wide, depths=[2, 2, 6, 2])
    with pytest.raises(CheckpointError, match="a Swin-S .*18-2.* is a Swin-T .*6-2"):
        convert_swin_release(small.state_dict(), tiny.state_dict(), "file")


def test_other_heads(tiny_cfg, build, save):
    model = build(as_swin(tiny_cfg(), num_heads=[2, 2, 3, 4]))
    text = refusal(model, save(release()[1]))
    assert f"of its weights 1 of another shape ({TABLE})" in text


def test_absent_and_foreign_entries(tiny_cfg, build, save):
    model = build(as_swin(tiny_cfg()))
    state = release()[1]
    del state["layers.3.blocks.0.norm2.bias"]
    assert "1 missing in the file (layers.3.blocks.0.norm2.bias)" in refusal(model, save(state))
    state = release()[1]
    state["layers.0.blocks.0.gamma"] = torch.ones(12)
    assert "1 not in the model (layers.0.blocks.0.gamma)" in refusal(model, save(state))
    model = build(as_swin(tiny_cfg(), ape=True, pretrain_img_size=32))
    assert "1 missing in the file (absolute_pos_embed)" in refusal(model, save(release()[1]))


def test_another_backbone(tiny_cfg, lgd_cfg, build, save):
    for cfg in (tiny_cfg(), lgd_cfg()):
        text = refusal(build(cfg), save(release()[1]))
        assert "holds a Swin Transformer, and this config's model has none: set MODEL" in text
