"""What tests that compare two gloo processes with one have in common."""

import torch
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from kd_d2 import get_kd_cfg
from kd_d2.engine import DistillationTrainer, TrainLoop, build_optimizer
from kd_d2.engine.launch import _launch_on_cpu
from kd_d2.engine.phases_hook import FreezeBackbonePhase

STEPS = 3


class Trainer(TrainerBase):
    """One fixed batch; the parts of DistillationTrainer that processes have a say in."""

    wrap_model = staticmethod(DistillationTrainer.wrap_model)

    def __init__(self, cfg, model, batch):
        super().__init__()
        optimizer = build_optimizer(cfg, model)
        self._trainer = TrainLoop(self.wrap_model(model), [batch] * STEPS, optimizer)
        self.losses = []

    @property
    def model(self):
        return self._trainer.model

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()
        latest = self.storage.latest()
        self.losses.append({k: v for k, (v, _) in latest.items() if "loss" in k})


def comparable(model):
    """Makes the student's losses those of one process with all images, and its samplers sure.

    RetinaNet divides by each process's own running count of positives, FCOS counts over all. The
    ROI heads divide by the number of sampled proposals, which is the same for any image that has
    enough of them; and whom the samplers draw must not depend on the process.
    """
    student = getattr(model, "student", model)
    if hasattr(student, "_ema_update"):
        student._ema_update = lambda name, value, initial: 20 / comm.get_world_size()
    torch.randperm = lambda n, device=None: torch.arange(n, device=device)


def run(cfg, batch, freeze=0):
    """Trains for some steps; returns the losses of each and the final weights."""
    torch.manual_seed(0)
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    trainer = Trainer(cfg, model, batch)
    trainer.register_hooks([FreezeBackbonePhase(freeze)])
    randperm = torch.randperm
    try:
        comparable(model)
        trainer.train(0, STEPS)
    finally:
        torch.randperm = randperm
    return trainer.losses, model.state_dict()


def run_scenarios(scenarios):
    """Name -> what :func:`run` gives for (config, batch of an image a rank, freeze)."""
    get_kd_cfg()  # registers the projects, as reading a config does in every real process
    rank = comm.get_rank()
    assert comm.get_world_size() == comm.get_local_size() == 2
    return {
        name: run(cfg, batch[rank : rank + 1], freeze)
        for name, (cfg, batch, freeze) in scenarios.items()
    }


def worker(scenarios, output):
    """What each of the two processes does."""
    torch.save(run_scenarios(scenarios), f"{output}/rank{comm.get_rank()}.pth")


def in_two_processes(work, scenarios, output):
    """What ``work(scenarios, output)`` has saved on either rank."""
    _launch_on_cpu(work, 2, 1, 0, None, (scenarios, str(output)))
    return [torch.load(output / f"rank{r}.pth", weights_only=False) for r in range(2)]


def assert_two_are_one(scenario, two):
    """One process with all images has the same losses, and in the end the same weights."""
    losses, weights = run(*scenario)
    two_losses, two_weights = two
    assert len(losses) == len(two_losses) == STEPS
    for step, (one, two) in enumerate(zip(losses, two_losses, strict=True)):
        assert one.keys() == two.keys()
        for key in one:
            assert abs(two[key] - one[key]) <= 2e-4 * abs(one[key]) + 1e-6, (
                step,
                key,
                one[key],
                two[key],
            )
    for key, value in weights.items():
        if key.endswith("num_batches_tracked") or not value.is_floating_point():
            continue
        # vectors of an untrained teacher, in the queue of CKD, are large
        atol = 1e-5 * max(1.0, value.abs().max().item())
        assert torch.allclose(two_weights[key], value, rtol=1e-3, atol=atol), key


def assert_equal_weights(ranks):
    """Both ranks end with the same weights; what a rank counts is its own."""
    first, second = (weights for _, weights in ranks)
    for key in first:
        if first[key].is_floating_point():
            assert torch.equal(first[key], second[key]), key
