"""AutoAssign as student of LGD, and its outputs as a frozen teacher gives them."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from tiny_models import NUM_CLASSES, build, lgd_cfg, random_batch, tiny_cfg

from kd_d2.modeling import build_stages
from kd_d2.modeling.views import Stage, ViewRequest

LOSSES = {"loss_pos", "loss_neg", "loss_center"}


@pytest.mark.parametrize("objects", [(2, 1), (0, 0)])
def test_student_of_lgd(objects):
    """Without an assignment to share, the teacher's pass weighs the locations by itself."""
    model = build(lgd_cfg("AutoAssign")).train()
    with EventStorage(0):
        losses = model(random_batch(objects=objects))
    assert losses.keys() == LOSSES | {f"{name}.tea" for name in LOSSES} | {"loss_distill"}
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_stages_give_decoded_predictions_and_towers():
    model = build(tiny_cfg("AutoAssign")).eval()
    request = ViewRequest(Stage.PREDICTIONS, ("cls_tower.0", "box_tower.0"), decoded=True)
    with torch.no_grad():
        view = build_stages(model).run(random_batch(), request)
    shapes = [x.shape[-2:] for x in view.features.values()]
    for outputs in view.taps.values():
        assert [x.shape[-2:] for x in outputs] == shapes and all((x >= 0).all() for x in outputs)
    assert view.decoded.logits.shape == (2, sum(h * w for h, w in shapes), NUM_CLASSES)
    levels = view.decoded.split_levels(view.decoded.logits)
    for mine, theirs in zip(levels, view.predictions[0], strict=True):
        assert torch.equal(mine, theirs.flatten(2).transpose(1, 2))
