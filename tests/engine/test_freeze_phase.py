"""The phase in which the raw backbone does not train."""

import pytest
import torch
from detectron2.engine.train_loop import TrainerBase

from kd_d2.engine import TrainLoop, build_optimizer
from kd_d2.engine.phases_hook import FreezeBackbonePhase, raw_backbone

BACKBONE = "student.backbone.bottom_up."


class Trainer(TrainerBase):
    """The least that the hook needs: a loop over one fixed batch."""

    def __init__(self, cfg, model, batch):
        super().__init__()
        self._trainer = TrainLoop(model, [batch] * 100, build_optimizer(cfg, model))
        self.history = []

    @property
    def model(self):
        return self._trainer.model

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()
        self.history.append(weights(self.model))


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(before, after, part):
    return {k for k in before if k.startswith(part) and not torch.equal(before[k], after[k])}


@pytest.fixture
def cfg(lgd_cfg):
    cfg = lgd_cfg()
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.WEIGHT_DECAY = 0.1  # decay would show in parameters that only lack a gradient
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    return cfg


def trained(cfg, build, batch, length, start=0, stop=4, state=None):
    torch.manual_seed(0)
    model = build(cfg)
    if state is not None:
        model.load_state_dict(state)
    initial = weights(model)
    trainer = Trainer(cfg, model, batch)
    trainer.register_hooks([FreezeBackbonePhase(length)])
    trainer.train(start, stop)
    return trainer, [initial, *trainer.history]


def test_only_the_raw_backbone_rests_and_then_trains(cfg, build, random_batch):
    trainer, history = trained(cfg, build, random_batch(), length=2)
    trainable = {k for k, p in build(cfg).named_parameters() if p.requires_grad}
    raw = {k for k in trainable if k.startswith(BACKBONE)}
    assert raw
    for before, after in zip(history[:2], history[1:3], strict=True):
        assert not changed(before, after, BACKBONE)
        assert changed(before, after, "student.backbone.fpn_")
        assert changed(before, after, "student.head")
        assert changed(before, after, "teacher.")
    for before, after in zip(history[2:-1], history[3:], strict=True):
        assert changed(before, after, BACKBONE) == raw
    # the stages that FREEZE_AT freezes stay frozen
    assert {k for k, p in trainer.model.named_parameters() if p.requires_grad} == trainable


def test_same_weights_as_dropping_the_gradients(cfg, build, random_batch):
    """The authors compute the backbone's gradients and set them to None before the step."""
    batch = random_batch()
    _, history = trained(cfg, build, batch, length=2, stop=3)

    torch.manual_seed(0)
    model = build(cfg)
    trainer = Trainer(cfg, model, batch)

    class DropGradients(FreezeBackbonePhase):
        def before_train(self):
            pass

        def before_step(self):
            self.iteration = self.trainer.iter

        def after_backward(self):
            if self.iteration < self.length:
                for p in raw_backbone(model).parameters():
                    p.grad = None

    hook = DropGradients(2)
    trainer.register_hooks([hook])
    trainer._trainer.after_backward = hook.after_backward
    trainer.train(0, 3)
    for name, value in history[-1].items():
        assert torch.allclose(value, trainer.history[-1][name], atol=1e-6), name


def test_no_gradient_is_computed_or_left_over(cfg, build, random_batch):
    torch.manual_seed(0)
    model = build(cfg)
    trainer = Trainer(cfg, model, random_batch())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    seen = []
    hook = FreezeBackbonePhase(1)
    trainer.register_hooks([hook])
    trainer._trainer.after_backward = lambda: seen.append(
        [p.grad is None for p in raw_backbone(model).parameters() if p in set(hook._parameters)]
    )
    trainer.train(0, 2)
    assert all(seen[0]) and not any(seen[1])


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_resumed_run_is_in_the_right_phase(cfg, build, random_batch, start):
    _, history = trained(cfg, build, random_batch(), 2, start=start, stop=start + 1)
    assert bool(changed(history[0], history[1], BACKBONE)) == (start >= 2)


def test_parameters_are_given_back_if_training_ends_in_the_phase(cfg, build, random_batch):
    trainer, _ = trained(cfg, build, random_batch(), length=100, stop=1)
    fresh = {k for k, p in build(cfg).named_parameters() if p.requires_grad}
    assert {k for k, p in trainer.model.named_parameters() if p.requires_grad} == fresh


def test_the_backbone_is_that_below_the_pyramid(tiny_cfg, build):
    model = build(tiny_cfg())
    assert raw_backbone(model) is model.backbone.bottom_up
