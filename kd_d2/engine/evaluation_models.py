"""What is evaluated: the student, and on request the teacher beside it."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["TeacherInference", "unwrap_model"]


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class TeacherInference(nn.Module):
    """A distiller whose eval-mode output is its teacher's instead of its student's.

    For a label encoder that output is made with the ground truth: a diagnosis
    and an upper bound, never a result.
    """

    def __init__(self, distiller: nn.Module):
        super().__init__()
        self.distiller = distiller
        # Detectron2 restores the mode of the module that it was given, i.e. of this one
        self.train(distiller.training)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self.distiller.inference(batched_inputs, teacher=True)
