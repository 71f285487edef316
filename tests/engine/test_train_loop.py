"""Precision, loss checks and state of the training step."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from kd_d2.config.rules import ConfigError
from kd_d2.engine.train_loop import TrainLoop, amp_dtype


class Model(nn.Module):
    """Remembers the dtype that its matrix product ran in."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.bad = None

    def forward(self, x):
        y = self.linear(x)
        self.seen = y.dtype
        losses = {"loss_cls": y.float().pow(2).mean(), "loss_distill": y.float().mean()}
        if self.bad is not None:
            losses["loss_distill"] = losses["loss_distill"] * self.bad
        return losses


def loop(dtype=None, lr=0.1):
    model = Model()
    data = [torch.ones(4, 2)] * 10
    return TrainLoop(model, data, torch.optim.SGD(model.parameters(), lr=lr), dtype)


def run(trainer, steps=1):
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
            storage.step()
        return storage


def test_float32_step_is_detectrons():
    from detectron2.engine import SimpleTrainer

    ours = loop()
    model = Model()
    model.load_state_dict(ours.model.state_dict())
    theirs = SimpleTrainer(
        model, [torch.ones(4, 2)] * 10, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    storage, stock_storage = run(ours, 3), run(theirs, 3)
    assert torch.equal(ours.model.linear.weight, model.linear.weight)
    for name in ("total_loss", "loss_cls", "loss_distill"):
        assert storage.latest()[name][0] == pytest.approx(stock_storage.latest()[name][0])
    assert set(storage.latest()) == set(stock_storage.latest())


def test_bfloat16_on_the_cpu():
    trainer = loop(torch.bfloat16)
    before = trainer.model.linear.weight.clone()
    run(trainer)
    assert trainer.model.seen == torch.bfloat16
    assert trainer.model.linear.weight.dtype == torch.float32
    assert not torch.equal(before, trainer.model.linear.weight)
    assert trainer.grad_scaler is None and "grad_scaler" not in trainer.state_dict()


def test_amp_settings_on_a_cpu(tiny_cfg, caplog):
    cfg = tiny_cfg()
    assert amp_dtype(cfg) is None
    cfg.SOLVER.AMP.ENABLED = True
    caplog.set_level("INFO", "kd_d2")
    assert amp_dtype(cfg) is None
    assert "training in float32" in caplog.text and len(caplog.records) == 1
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert amp_dtype(cfg) == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_loss_stops_before_the_step_and_is_named(bad):
    trainer = loop()
    run(trainer)
    trainer.model.bad = bad
    before = trainer.model.linear.weight.clone()
    with pytest.raises(FloatingPointError, match="iteration 0 on rank 0, loss_distill = ") as error:
        run(trainer)
    assert "loss_cls = " in str(error.value)
    assert torch.equal(before, trainer.model.linear.weight)


def test_a_batch_norm_of_one_value_names_the_batch_size():
    trainer, norm = loop(), nn.BatchNorm2d(2)
    trainer.model.forward = lambda x: {"loss": norm(x[:1, :, None, None]).sum()}
    with pytest.raises(ConfigError, match="SOLVER.IMS_PER_BATCH .* two images or more"):
        run(trainer)
    trainer.model.forward = lambda x: int("no number")  # any other error is left as it is
    with pytest.raises(ValueError, match="invalid literal"):
        run(trainer)


def test_optimizer_state_is_in_the_state_dict():
    trainer = loop()
    run(trainer, 2)
    other = loop()
    other.load_state_dict(trainer.state_dict())
    assert other.iter == trainer.iter == 1


def test_float16_scales_and_restores():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Model().to(device)
    trainer = TrainLoop(
        model,
        [torch.ones(4, 2, device=device)] * 10,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.float16,
    )
    run(trainer, 2)
    assert model.seen == torch.float16
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] == 65536.0
    trainer.load_state_dict(state)
