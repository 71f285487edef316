"""The phase in which the student's raw backbone does not train (LGD, arXiv 2109.11496)."""

import gc
import logging

from detectron2.engine import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kd_d2.modeling import build_stages

from .evaluation_models import unwrap_model

__all__ = ["FreezeBackbonePhase", "raw_backbone"]

logger = logging.getLogger(__name__)


def raw_backbone(model: nn.Module) -> nn.Module:
    """Return the backbone below the feature pyramid of a distiller's student or of a detector."""
    return build_stages(getattr(model, "student", model)).feature_extractor()


class FreezeBackbonePhase(HookBase):
    """Keeps the raw backbone as it is for the first iterations.

    LGD's authors compute its gradients and then drop them. Not asking for them gives the same
    weights (the optimiser passes over parameters without gradient: no momentum, no decay) and
    saves the backbone's backward pass and its all-reduce.

    The optimiser is built with all parameters before this hook runs. Under DDP the model is
    wrapped anew at each switch, so that the reducer waits for exactly the gradients that come. The
    phase follows from the iteration alone, so a resumed run is in the right one.
    """

    def __init__(self, length: int):
        """
        Args:
            length: number of iterations, counted from iteration 0.
        """
        self.length = length
        self._parameters: list[nn.Parameter] | None = None
        self._frozen = False

    def before_train(self) -> None:
        if self._parameters is None:
            backbone = raw_backbone(unwrap_model(self.trainer.model))
            # exactly those, so that MODEL.BACKBONE.FREEZE_AT's stages stay frozen afterwards
            self._parameters = [p for p in backbone.parameters() if p.requires_grad]
        self._update(self.trainer.start_iter)

    def before_step(self) -> None:
        self._update(self.trainer.iter)

    def after_train(self) -> None:
        # whoever takes the model over finds it as it was built
        for p in self._parameters or ():
            p.requires_grad_(True)

    def _update(self, iteration: int) -> None:
        frozen = iteration < self.length
        if frozen == self._frozen or not self._parameters:
            return
        self._frozen = frozen
        for p in self._parameters:
            p.requires_grad_(not frozen)
            p.grad = None
        logger.info(
            "Iteration %d: the raw backbone (%d parameters) %s.",
            iteration,
            len(self._parameters),
            f"is frozen until iteration {self.length}" if frozen else "trains from now on",
        )
        self._rewrap()

    def _rewrap(self) -> None:
        trainer = self.trainer._trainer
        if not isinstance(trainer.model, DistributedDataParallel):
            return
        module = trainer.model.module
        trainer.model = None
        # The old reducer's hooks on the parameters go when it is collected, not before
        gc.collect()
        trainer.model = self.trainer.wrap_model(module)
