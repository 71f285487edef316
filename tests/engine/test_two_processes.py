"""Two gloo processes against one: same losses, same weights, and no rank that waits for ever.

One launch runs all scenarios, because starting two interpreters is what costs the time.
"""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from two_processes import (
    STEPS,
    assert_equal_weights,
    assert_two_are_one,
    in_two_processes,
    run_scenarios,
)

from kd_d2.engine import DistillationTrainer, TrainLoop
from kd_d2.engine.launch import LaunchError, launch


class Spoiled(nn.Module):
    """Its loss is NaN on rank 1 only."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x):
        bad = float("nan") if comm.get_rank() == 1 else 1.0
        return {"loss_fine": self.w.sum(), "loss_bad": self.w.sum() * bad}


def message_of_a_bad_loss():
    model = DistillationTrainer.wrap_model(Spoiled())
    loop = TrainLoop(model, [None] * 2, torch.optim.SGD(model.parameters(), lr=1.0))
    loop.iter = 0
    with EventStorage():
        try:
            loop.run_step()
        except FloatingPointError as error:
            assert model.module.w.tolist() == [1, 1]
            return str(error)
    return "trained on"


def worker(scenarios, output):
    """What each of the two processes does."""
    results = run_scenarios(scenarios)
    results["bad"] = message_of_a_bad_loss()
    torch.save(results, f"{output}/rank{comm.get_rank()}.pth")


@pytest.fixture(scope="module")
def scenarios():
    from tiny_models import lgd_cfg, random_batch

    def cfg(arch, post=None):
        # 64: torch refuses group norms of one channel a group on a level of one cell
        cfg = lgd_cfg(arch, fpn_channels=64)
        cfg.SOLVER.MAX_ITER = STEPS
        cfg.SOLVER.BASE_LR = 0.005 if arch == "FCOS" else 1e-4
        cfg.MODEL.KD.LGD.PRE_NONDISTILL = 1
        cfg.MODEL.KD.LGD.POST_NONDISTILL = post
        cfg.MODEL.KD.LGD.DETACH_APPEARANCE_EMBED = arch == "FasterRCNN"  # the paper's
        return cfg

    different = random_batch(((64, 64), (64, 64)), objects=(3, 2))
    with_empty = random_batch(((64, 64), (64, 64)), objects=(2, 0))
    scenarios = {}
    for arch in ("FCOS", "RetinaNet", "FasterRCNN"):
        # distillation is off in the first step, and with POST 2 in the last
        scenarios[arch] = (cfg(arch), different, 0)
        scenarios[f"{arch}, one rank without objects"] = (cfg(arch, post=2), with_empty, 0)
        scenarios[f"{arch}, frozen phase"] = (cfg(arch), different, 2)
    return scenarios


@pytest.fixture(scope="module")
def ranks(scenarios, tmp_path_factory):
    return in_two_processes(worker, scenarios, tmp_path_factory.mktemp("ranks"))


NAMES = [
    f"{arch}{what}"
    for arch in ("FCOS", "RetinaNet", "FasterRCNN")
    for what in ("", ", one rank without objects", ", frozen phase")
]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_are_one_with_the_same_batch(name, scenarios, ranks):
    assert_two_are_one(scenarios[name], ranks[0][name])
    assert all(len(losses) >= 5 for losses in ranks[0][name][0])


@pytest.mark.parametrize("name", NAMES)
def test_both_ranks_end_with_the_same_weights(name, ranks):
    assert_equal_weights([rank[name] for rank in ranks])


@pytest.mark.parametrize("arch", ["FCOS", "RetinaNet", "FasterRCNN"])
def test_the_backbone_rested_and_then_trained(arch, scenarios, ranks):
    """The frozen phase ended by wrapping the model anew: its last step trained the backbone."""
    frozen, free = ranks[0][f"{arch}, frozen phase"][1], ranks[0][arch][1]
    _, initial = _untrained(scenarios[arch][0])
    key = "student.backbone.bottom_up.res5.1.conv2.weight"
    moved, moved_free = (frozen[key] - initial[key]).norm(), (free[key] - initial[key]).norm()
    assert 0 < moved < moved_free


def _untrained(cfg):
    torch.manual_seed(0)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model, model.state_dict()


def test_a_bad_loss_on_one_rank_stops_both_with_its_name(ranks):
    for rank in ranks:
        assert "on rank 1, loss_bad = nan" in rank["bad"]
        assert "loss_fine" in rank["bad"]


def test_an_exit_code_of_a_process_is_the_runs(monkeypatch):
    def exited(*args, **kwargs):
        raise torch.multiprocessing.ProcessExitedException("", 0, 1, exit_code=2)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.multiprocessing, "start_processes", exited)
    with pytest.raises(SystemExit) as error:
        launch(print, 2)
    assert error.value.code == 2


def test_one_process_runs_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    called = []
    launch(called.append, 1, args=(1,))
    launch(called.append, 0, args=(2,))
    assert called == [1, 2]


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LaunchError, match="--num-gpus is 4, but this machine has 2"):
        launch(print, 4)
