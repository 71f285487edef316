"""One training step: forward, backward, checks, optimiser; in float32, bfloat16 or float16."""

import contextlib
import logging
import time
from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from kd_d2.config.rules import ConfigError

from .optimizer import check_optimizer_state

__all__ = ["TrainLoop", "amp_dtype"]

logger = logging.getLogger(__name__)


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the dtype to autocast to, None for float32, as SOLVER.AMP and the device allow."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    dtype = getattr(torch, cfg.SOLVER.AMP.DTYPE)
    if dtype == torch.float16 and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning(
            "SOLVER.AMP is on with float16, which CPUs do not train in: training in float32 "
            "(SOLVER.AMP.DTYPE bfloat16 works here)."
        )
        return None
    logger.info("Mixed precision: %s.", cfg.SOLVER.AMP.DTYPE)
    return dtype


class TrainLoop(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, on today's ``torch.amp``.

    Two things differ from them. A loss that is not finite stops every rank before the optimiser
    steps, with the loss's name (Detectron2 tells rank 0 only, and the others hang until their
    time-out). And all losses are fetched from the device at once instead of one by one.
    """

    def __init__(self, model, data_loader, optimizer, dtype: torch.dtype | None = None):
        """
        Args:
            model, data_loader, optimizer: as for ``SimpleTrainer``.
            dtype: autocast to it; None trains in float32. float16 scales the loss.
        """
        super().__init__(model, data_loader, optimizer)
        self.dtype = dtype
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = (
            torch.amp.GradScaler(self.device_type) if dtype == torch.float16 else None
        )

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            FloatingPointError: a loss is infinite or NaN on some rank.
            ConfigError: a batch norm has nothing to average over.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with self._autocast():
            losses = self._losses(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        if self.grad_scaler is None:
            total.backward()
        else:
            self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _losses(self, data) -> dict[str, torch.Tensor]:
        try:
            return self.model(data)
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "SOLVER.IMS_PER_BATCH gives a process one image, and of it a batch norm sees a map "
                "of one pixel: give each process two images or more, larger ones (INPUT.*), or set "
                "the NORM of the part to GN or FrozenBN."
            ) from error

    def _autocast(self):
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix="", iter=None
    ) -> None:
        iteration = self.iter if iter is None else iter
        values = torch.stack([v.detach().float() for v in loss_dict.values()]).tolist()
        mine = dict(zip(loss_dict, values, strict=True))
        # Every rank must learn of a bad loss on any of them, or some wait for the next all-reduce
        ranks = comm.all_gather({**mine, "data_time": data_time})
        _check_finite(ranks, iteration)
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=iteration)
        if not comm.is_main_process():
            return
        slowest = max(metrics["data_time"] for metrics in ranks)
        storage.put_scalar("data_time", slowest, cur_iter=iteration)
        mean = {k: float(np.mean([metrics[k] for metrics in ranks])) for k in mine}
        storage.put_scalar(f"{prefix}total_loss", sum(mean.values()), cur_iter=iteration)
        if len(mean) > 1:
            storage.put_scalars(cur_iter=iteration, **mean)

    def state_dict(self) -> dict:
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def check_state_dict(self, state_dict: dict) -> None:
        """
        Raises:
            ValueError: the state is that of another kind of run; see ``check_optimizer_state``.
        """
        check_optimizer_state(self.optimizer, state_dict["optimizer"])

    def load_state_dict(self, state_dict: dict) -> None:
        self.check_state_dict(state_dict)
        super().load_state_dict(state_dict)
        # A run may be resumed in another precision; then the scaler starts with its defaults.
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _check_finite(ranks: list[dict[str, float]], iteration: int) -> None:
    """Raise FloatingPointError, alike on all ranks, if a loss of any of them is not finite."""
    for rank, metrics in enumerate(ranks):
        losses = {k: v for k, v in metrics.items() if k != "data_time"}
        bad = {k: v for k, v in losses.items() if not np.isfinite(v)}
        if bad:
            names = ", ".join(f"{k} = {v}" for k, v in bad.items())
            fine = ", ".join(f"{k} = {v:.4g}" for k, v in losses.items() if k not in bad)
            raise FloatingPointError(
                f"At iteration {iteration} on rank {rank}, {names} (finite: {fine or 'none'}); no "
                "weight was changed in this iteration. A lower SOLVER.BASE_LR, a longer warm-up or "
                "SOLVER.CLIP_GRADIENTS usually helps."
            )
