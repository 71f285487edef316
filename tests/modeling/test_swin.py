"""Swin backbones: equal to torchvision's, sane names and sizes, a gradient for every parameter."""

import math
import re
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.ops import StochasticDepth

from kd_d2 import get_kd_cfg
from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.engine.phases_hook import FreezeBackbonePhase, raw_backbone
from kd_d2.modeling.backbones import Swin, check_swin_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4], "window_size": 4}
STAGES = ["stage2", "stage3", "stage4", "stage5"]
BARE = "build_swin_backbone"
RCNN = "build_swin_fpn_backbone"
DENSE = "build_retinanet_swin_fpn_backbone"


def as_swin(cfg, **kwargs):
    """Gives a config of tiny_models.py a tiny Swin in the place of its ResNet."""
    dense = "retinanet" in cfg.MODEL.BACKBONE.NAME
    cfg.MODEL.BACKBONE.NAME = DENSE if dense else RCNN
    cfg.MODEL.BACKBONE.FREEZE_AT = -1
    for key, value in {**TINY, **kwargs}.items():
        cfg.MODEL.SWIN[key.upper()] = value
    return cfg


def cfg_of(name, **kwargs):
    cfg = get_kd_cfg()
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    as_swin(cfg, **kwargs)
    cfg.MODEL.BACKBONE.NAME = name
    return cfg


def build_it(cfg):
    return build_backbone(cfg, ShapeSpec(channels=3))


def yaml_cfg(size, name=BARE):
    cfg = get_kd_cfg()
    cfg.merge_from_file(str(CONFIGS / f"backbones/Swin-{size}.yaml"), allow_unsafe=False)
    cfg.MODEL.BACKBONE.NAME = name
    return cfg


def on_meta(cfg):
    with torch.device("meta"):
        return build_it(cfg)


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


# ---- the network


def test_swin_t_is_torchvisions_but_for_the_norms():
    """torchvision's Swin-T less its classifier and final norm, plus a norm for each output."""
    theirs = num_parameters(torchvision.models.swin_t())
    assert theirs == 28_288_354
    trunk = theirs - 769_000 - 2 * 768
    assert (
        num_parameters(on_meta(yaml_cfg("T"))) == trunk + 2 * (96 + 192 + 384 + 768) == 27_520_698
    )
    dense = on_meta(yaml_cfg("T", DENSE)).bottom_up
    assert num_parameters(dense) == trunk + 2 * (192 + 384 + 768)


@pytest.mark.parametrize("size", ["T", "S", "B"])
def test_yaml_sizes(size):
    theirs = getattr(torchvision.models, f"swin_{size.lower()}")
    with torch.device("meta"):
        theirs = theirs()
    width = theirs.head.in_features
    trunk = num_parameters(theirs) - num_parameters(theirs.head) - num_parameters(theirs.norm)
    ours = on_meta(yaml_cfg(size))
    assert num_parameters(ours) == trunk + 2 * width * 15 // 8
    assert all(p.requires_grad for p in ours.parameters())


def test_swin_l_and_what_all_yaml_files_say():
    """The large one is the base one at 1.5 times its width."""
    large, base = on_meta(yaml_cfg("L")), on_meta(yaml_cfg("B"))
    assert [len(layer.blocks) for layer in large.layers] == [2, 2, 18, 2]
    assert large.num_features == [n * 3 // 2 for n in base.num_features] == [192, 384, 768, 1536]
    for size, file in {
        "T": "tiny_patch4_window7_224",
        "S": "small_patch4_window7_224",
        "B": "base_patch4_window7_224_22k",
        "L": "large_patch4_window7_224_22k",
    }.items():
        cfg = yaml_cfg(size)
        assert cfg.MODEL.WEIGHTS.endswith(f"/v1.0.0/swin_{file}.pth")
        assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
        assert cfg.MODEL.BACKBONE.FREEZE_AT == -1
        check_config(cfg)


def from_torchvision(state):
    """Names of torchvision's Swin to those of the original release."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", name)
        name = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", name)
        found = re.match(r"features\.(\d)\.(.*)", name)
        if found:
            stage, rest = (int(found[1]) - 1) // 2, found[2]
            merging = int(found[1]) % 2 == 0
            name = f"layers.{stage}.{'downsample' if merging else 'blocks'}.{rest}"
        name = name.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        renamed[name] = value.view(16, 16) if name.endswith("position_index") else value
    return renamed


@pytest.mark.parametrize("size", [(256, 320), (250, 333)])
def test_same_features_as_torchvision(size):
    theirs = TorchvisionSwin(
        [4, 4], TINY["embed_dim"], TINY["depths"], TINY["num_heads"], [4, 4], norm_layer=None
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.1)
    ours = Swin(**TINY).eval()
    result = ours.load_state_dict(from_torchvision(theirs.state_dict()), strict=False)
    assert {k.split(".")[0] for k in result.unexpected_keys} == {"norm", "head"}
    assert {k.split(".")[0] for k in result.missing_keys} == {"norm0", "norm1", "norm2", "norm3"}
    x = torch.randn(2, 3, *size)
    # torchvision cuts what does not fill a patch, Detectron2 pads it with zeros
    padded = torch.nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4))
    with torch.no_grad():
        outputs = ours(x)
        expected = padded
        for i, layer in enumerate(theirs.features):
            expected = layer(expected)  # (N, H, W, C)
            if i % 2:
                normed = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
                output = outputs[STAGES[i // 2]].permute(0, 2, 3, 1)
                assert torch.allclose(output, normed, atol=1e-4)


# ---- stochastic depth


def depths(swin):
    return [block.drop_path for layer in swin.layers for block in layer.blocks]


def test_drop_path_grows_linearly_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # an import fails, installed or not
    swin = Swin(**TINY, drop_path_rate=0.2)
    paths = depths(swin)
    assert isinstance(paths[0], torch.nn.Identity)
    assert all(isinstance(p, StochasticDepth) and p.mode == "row" for p in paths[1:])
    assert [p.p for p in paths[1:]] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    swin_t = depths(on_meta(yaml_cfg("T")))
    assert [0.0] + [p.p for p in swin_t[1:]] == torch.linspace(0, 0.2, 12).tolist()
    none = Swin(**TINY, drop_path_rate=0.0)
    assert all(isinstance(p, torch.nn.Identity) for p in depths(none))
    # no parameters and no buffers of its own
    assert swin.state_dict().keys() == none.state_dict().keys()


def test_drop_path_is_off_at_inference_and_right_on_average():
    dropping, plain = Swin(**TINY, drop_path_rate=0.5).eval(), Swin(**TINY, drop_path_rate=0.0)
    plain.load_state_dict(dropping.state_dict())
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for name, value in plain.eval()(x).items():
            assert torch.equal(dropping(x)[name], value)
    path = depths(dropping.train())[-1]
    rows = path(torch.ones(4000, 2, 3))
    assert set(rows.flatten().tolist()) == {0.0, 2.0}  # 1 / (1 - 0.5), or nothing
    assert all(len(set(row.flatten().tolist())) == 1 for row in rows[:50])  # whole images
    assert rows.mean() == pytest.approx(1.0, abs=0.05)


# ---- names and sizes


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (33, 129)])
def test_bare_outputs(size):
    swin = build_it(cfg_of(BARE)).eval()
    assert swin.size_divisibility == 32
    with torch.no_grad():
        outputs = swin(torch.rand(1, 3, *size))
    assert list(outputs) == list(swin.output_shape()) == STAGES
    for i, (name, spec) in enumerate(swin.output_shape().items()):
        assert (spec.channels, spec.stride) == (12 * 2**i, 4 * 2**i)
        expected = (1, spec.channels, *(math.ceil(n / spec.stride) for n in size))
        assert outputs[name].shape == expected


@pytest.mark.parametrize(
    "name, levels", [(RCNN, [2, 3, 4, 5, 6]), (DENSE, [3, 4, 5, 6, 7])], ids=["rcnn", "dense"]
)
def test_pyramids_at_the_usual_canvas(name, levels):
    backbone = build_it(cfg_of(name)).eval()
    assert backbone.size_divisibility == 32
    with torch.no_grad():
        outputs = backbone(torch.rand(1, 3, 800, 1344))
    assert list(outputs) == list(backbone.output_shape()) == [f"p{i}" for i in levels]
    for i in levels:
        spec = backbone.output_shape()[f"p{i}"]
        assert (spec.channels, spec.stride) == (16, 2**i)
        size = (math.ceil(800 / 2**i), math.ceil(1344 / 2**i))
        assert outputs[f"p{i}"].shape == (1, 16, *size)
    laterals = {k.split(".")[0] for k in backbone.state_dict() if k.startswith("fpn_lateral")}
    assert laterals == {f"fpn_lateral{i}" for i in levels if i <= 5}


def test_top_blocks_read_the_pyramid():
    """P6 comes from the pyramid's P5, whatever the backbone calls its outputs."""
    dense, rcnn = build_it(cfg_of(DENSE)).eval(), build_it(cfg_of(RCNN)).eval()
    assert (dense.top_block.p6.in_channels, dense.top_block.in_feature) == (16, "p5")
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        outputs = dense(x)
        assert torch.equal(outputs["p6"], dense.top_block.p6(outputs["p5"]))
        outputs = rcnn(x)
        assert torch.equal(outputs["p6"], outputs["p5"][:, :, ::2, ::2])


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN"])
def test_images_of_odd_sizes_in_a_detector(tiny_cfg, build, random_batch, arch):
    model = build(as_swin(tiny_cfg(arch))).eval()
    batch = random_batch(sizes=((65, 90), (50, 131)))
    assert model.preprocess_image(batch).tensor.shape[2:] == (96, 160)
    with torch.no_grad():
        assert len(model(batch)) == 2


# ---- training


def step(model, batch):
    losses = model.train()(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("arch", ["RetinaNet", "FCOS", "FasterRCNN", "MaskRCNN"])
def test_every_parameter_gets_a_gradient(tiny_cfg, build, random_batch, storage, arch):
    """Also those of a dropped branch and of each output norm: DDP waits for all."""
    model = build(as_swin(tiny_cfg(arch), drop_path_rate=0.9))
    step(model, random_batch(masks=arch == "MaskRCNN"))
    assert all(p.requires_grad for p in model.parameters())
    without = [k for k, p in model.named_parameters() if p.grad is None]
    assert without == []
    norms = {k for k, _ in raw_backbone(model).named_children() if k.startswith("norm")}
    assert norms == ({"norm1", "norm2", "norm3"} | ({"norm0"} if "RCNN" in arch else set()))


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN"])
def test_label_guided_distillation(lgd_cfg, build, random_batch, storage, arch):
    cfg = as_swin(lgd_cfg(arch))
    check_config(cfg)
    model = build(cfg)
    losses = step(model, random_batch())
    assert any(name.endswith(".tea") for name in losses)
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    backbone = raw_backbone(model)
    assert isinstance(backbone, Swin) and backbone is model.student.backbone.bottom_up


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_frozen_phase(lgd_cfg, build, random_batch, storage, use_checkpoint):
    model = build(as_swin(lgd_cfg(), use_checkpoint=use_checkpoint))
    hook = FreezeBackbonePhase(1)
    hook.trainer = SimpleNamespace(
        model=model, _trainer=SimpleNamespace(model=model), start_iter=0, iter=0
    )
    hook.before_train()
    step(model, random_batch())
    without = {k for k, p in model.named_parameters() if p.grad is None}
    raw = "student.backbone.bottom_up."
    assert without == {k for k, _ in model.named_parameters() if k.startswith(raw)}
    hook.trainer.iter = 1
    hook.before_step()
    step(model, random_batch())
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "freeze_at, frozen",
    [
        (-1, set()),
        (0, set()),
        (1, {"patch_embed", "absolute_pos_embed"}),
        (2, {"patch_embed", "absolute_pos_embed", "layers.0"}),
        (4, {"patch_embed", "absolute_pos_embed", "layers.0", "layers.1", "layers.2"}),
    ],
)
def test_freeze_at(freeze_at, frozen):
    cfg = cfg_of(BARE, ape=True, pretrain_img_size=32, drop_path_rate=0.5)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    swin = build_it(cfg)
    assert swin.train() is swin
    names = {k for k, p in swin.named_parameters() if not p.requires_grad}
    assert {re.match(r"layers\.\d|\w+", k)[0] for k in names} == frozen
    # no stochastic depth in what is frozen, and in all else
    for i, layer in enumerate(swin.layers):
        assert all(m.training == (f"layers.{i}" not in frozen) for m in layer.modules())
    sum(v.sum() for v in swin(torch.rand(1, 3, 64, 64)).values()).backward()
    assert names == {k for k, p in swin.named_parameters() if p.grad is None}


@pytest.mark.parametrize("freeze_at", [-1, 1])
def test_checkpointing_changes_no_gradient(freeze_at):
    cfg = cfg_of(BARE, drop_path_rate=0.0)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    plain = build_it(cfg).train()
    cfg.MODEL.SWIN.USE_CHECKPOINT = True
    saving = build_it(cfg).train()
    saving.load_state_dict(plain.state_dict())
    saving = deepcopy(saving)  # as the averaging of weights does
    x = torch.rand(2, 3, 64, 96)
    sum((v**2).sum() for v in plain(x).values()).backward()
    loss = sum((v**2).sum() for v in saving(x).values())
    saving(torch.rand(1, 3, 32, 32))  # another size before the backward pass
    loss.backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == (not p.requires_grad), name
        assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-5), name


def test_bfloat16(tiny_cfg, build, random_batch, storage):
    model = build(as_swin(tiny_cfg()))
    with torch.autocast("cpu", torch.bfloat16):
        step(model, random_batch())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# ---- configs


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SWIN.DEPTHS", [2, 2, 6], "DEPTHS is .*stage2, stage3, stage4, stage5"),
        ("SWIN.NUM_HEADS", [1, 2, 5, 4], "48 channels of stage4 cannot be divided into 5 heads"),
        ("SWIN.WINDOW_SIZE", 1, "WINDOW_SIZE is 1"),
        ("SWIN.DROP_PATH_RATE", 1.0, "DROP_PATH_RATE is 1.0"),
        ("SWIN.OUT_FEATURES", ["stage2", "stage3"], "stage5 as the last"),
        ("SWIN.OUT_FEATURES", ["stage5", "stage4"], "in this order"),
        ("SWIN.OUT_FEATURES", ["p2", "stage5"], "name some of stage2"),
        ("BACKBONE.FREEZE_AT", 6, "FREEZE_AT is 6"),
        ("FPN.IN_FEATURES", STAGES, "makes its pyramid of stage3, stage4, stage5: leave"),
    ],
)
def test_refusals(key, value, message):
    cfg = cfg_of(DENSE)
    cfg.MODEL[key.split(".")[0]][key.split(".")[1]] = value
    with pytest.raises(ValueError, match=message):
        build_it(cfg)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


def test_levels_of_the_base_config_are_no_error():
    for asked in ([], ["res3", "res4", "res5"], STAGES[1:]):
        cfg = cfg_of(DENSE)
        cfg.MODEL.FPN.IN_FEATURES = asked
        check_swin_config(cfg)
        assert on_meta(cfg).in_features == ("stage3", "stage4", "stage5")
