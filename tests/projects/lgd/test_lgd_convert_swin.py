"""The authors' checkpoints of students on Swin."""

import pytest
import torch
from convert_cases import convert, swin_config
from official_lgd import official_state, perturb

from kd_d2.checkpoint import CheckpointError


def renumber_norms(state, shift):
    beginning = "student.raw_backbone.norm"
    return {
        f"{beginning}{int(k[len(beginning)]) + shift}{k[len(beginning) + 1 :]}"
        if k.startswith(beginning)
        else k: v
        for k, v in state.items()
    }


@pytest.mark.parametrize("arch, numbers", [("RetinaNet", "123"), ("MaskRCNN", "0123")])
@pytest.mark.parametrize("shift", [0, 2])
def test_swin(arch, numbers, shift, lgd_cfg, build, build_other):
    """Norms of the outputs are numbered as layers or as stages, and one index is a constant."""
    cfg = swin_config(lgd_cfg, arch)
    source = perturb(build(cfg))
    state = renumber_norms(official_state(source), shift)
    state["student.raw_backbone.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    model = build_other(cfg)
    result = convert(state, model)
    own = source.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    for n in numbers:
        ours = f"student.backbone.bottom_up.norm{n}.bias"
        assert result.used[f"student.raw_backbone.norm{int(n) + shift}.bias"] == ours
    assert len(result.used) + len(result.dropped) == len(state)
    assert sum("window masks" in why for why in result.dropped.values()) == 1
    index = [k for k in state if k.endswith("relative_position_index")]
    assert len(index) == 5 and all("config determines" in result.dropped[k] for k in index)

    for k in index:  # newer releases do not save it
        del state[k]
    convert(state, build_other(cfg))


def test_swin_of_other_settings(lgd_cfg, build, build_other):
    cfg = swin_config(lgd_cfg, "RetinaNet")
    state = official_state(build(cfg))
    index = "student.raw_backbone.layers.0.blocks.0.attn.relative_position_index"
    with pytest.raises(CheckpointError, match="relative_position_index.* the window size"):
        convert(state | {index: state[index] + 1}, build_other(cfg))
    norm = "student.raw_backbone.norm"
    swapped = dict(state)
    swapped[f"{norm}1.weight"], swapped[f"{norm}2.weight"] = (
        state[f"{norm}2.weight"],
        state[f"{norm}1.weight"],
    )
    with pytest.raises(CheckpointError, match=r"2 weights have another shape .*norm1.weight"):
        convert(swapped, build_other(cfg))
    extra = state | {f"{norm}0.{k}": torch.ones(8) for k in ("weight", "bias")}
    with pytest.raises(CheckpointError, match=r"have no place in the model .*bottom_up.norm0"):
        convert(extra, build_other(cfg))
    cfg.MODEL.SWIN.WINDOW_SIZE = 5
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 1, 1]
    with pytest.raises(CheckpointError, match=r"SWIN.DEPTHS \(\[1, 2, 1, 1\].*WINDOW_SIZE \(3 in"):
        convert(state, build_other(cfg))
