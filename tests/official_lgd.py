"""Checkpoints as LGD's authors save them, made from our models: names by a table of its own."""

import re
from collections import OrderedDict

import numpy as np
import torch

# our name -> theirs; the pyramid has two
OFFICIAL_NAMES = (
    (r"student\.backbone\.bottom_up\.(.+)", (r"student.raw_backbone.\1",)),
    (
        r"student\.backbone\.((?:fpn_lateral|fpn_output|top_block).+)",
        (r"student.backbone.\1", r"student.fpn.\1"),
    ),
    (r"student\.(head|roi_heads)\.(.+)", (r"student.\1.\2",)),
    (r"student\.proposal_generator\.rpn_head\.(.+)", (r"student.proposal_generator.rpn_head.\1",)),
    (r"teacher\.(.+)", (r"teacher.\1",)),
    (r"heads\.InstructiveFeatures\.distill\.adapter\.(\d.+)", (r"adapter.distill.adapter.\1",)),
)


def official_state(model, old_buffers=False):
    """``model`` of an official checkpoint.

    Args:
        model: an LGD distiller.
        old_buffers: with the constants that Detectron2 0.3 saved.
    """
    state = OrderedDict()
    for name, value in model.state_dict().items():
        (theirs,) = [
            (match, names)
            for pattern, names in OFFICIAL_NAMES
            if (match := re.fullmatch(pattern, name))
        ]
        for template in theirs[1]:
            state[theirs[0].expand(template)] = value.detach()
    if old_buffers:
        for name, value in model.named_buffers():
            if re.search(r"pixel_mean|pixel_std|cell_anchors", name):
                state[name] = value.detach()
    return state


def official_file(path, state, **entries):
    """Writes a checkpoint with what their trainer adds: two optimisers, two schedulers."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    schedule = {"milestones": [5, 8], "gamma": 0.1, "base_lrs": [np.float64(0.01)], "last_epoch": 9}
    data = {
        "model": state,
        "stu_optimizer": momentum,
        "tea_optimizer": momentum,
        "stu_scheduler": schedule,
        "tea_scheduler": schedule,
        "iteration": 179999,
        **entries,
    }
    torch.save(data, path)
    return str(path)


def perturb(model):
    """Moves every parameter and statistic, so that none has the value it would start with."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = 0.02 * torch.rand_like(value)
                value += noise if name.endswith("running_var") else noise - 0.01
    return model
