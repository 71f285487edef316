"""When the distillation loss reaches the student (paper, section 4.1: "warm-up").

While it does not, the loss is computed and added all the same: the adapter keeps learning to map
the student's features to the teacher's, so it is ready when distillation starts.
"""

import torch
from torch import Tensor, nn

from kd_d2.modeling.phases import phase_length

# The paper's 30k of 180k iterations, for schedules of any length.
DEFAULT_START = 1 / 6


def distillation_starts_after(value: int | float | None, max_iter: int) -> int:
    """Length of the phase without distillation at the start; None is the paper's sixth.

    Raises:
        ValueError: if ``value`` is no length.

    >>> distillation_starts_after(None, 180000), distillation_starts_after(0, 180000)
    (30000, 0)
    """
    return phase_length(DEFAULT_START if value is None else value, max_iter)


def is_distilling(iteration: int, start: int, post: int, max_iter: int) -> bool:
    """Whether the student learns from the distillation loss at a (0-based) iteration.

    It does from ``start`` on, and up to and including ``max_iter - post``.

    >>> [is_distilling(i, start=2, post=3, max_iter=8) for i in range(8)]
    [False, False, True, True, True, True, False, False]
    """
    return start <= iteration <= max_iter - post


class OvertakingTeacher(nn.Module):
    """Says 1 for ever once the teacher's loss has stayed below the student's for a while (ours).

    Both losses are followed by exponential moving averages. Everything is in buffers, so a
    resumed run goes on where it was, and nothing here waits for the device.
    """

    def __init__(self, *, horizon: int, patience: int):
        """
        Args:
            horizon: iterations over which the losses are averaged.
            patience: successive iterations that the teacher's average must have been the lower.
        """
        super().__init__()
        self.decay = 1 - 1 / max(horizon, 1)
        self.patience = max(patience, 1)
        self.register_buffer("averages", torch.zeros(2))  # student, teacher
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("lead", torch.zeros((), dtype=torch.long))
        self.register_buffer("distilling", torch.zeros(()))

    @torch.no_grad()
    def forward(self, student_loss: Tensor, teacher_loss: Tensor) -> Tensor:
        """
        Args:
            student_loss, teacher_loss: scalars of this iteration.

        Returns:
            scalar, 0 or 1, in float32.
        """
        losses = torch.stack([student_loss.detach(), teacher_loss.detach()]).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # All processes must start at the same iteration. The sum serves as well as the mean.
            torch.distributed.all_reduce(losses)
        # A step that mixed precision throws away must not spoil the averages for ever.
        usable = torch.isfinite(losses).all()
        average = torch.where(
            self.updates == 0, losses, torch.lerp(losses, self.averages, self.decay)
        )
        self.averages.copy_(torch.where(usable, average, self.averages))
        self.updates.add_(usable.long())
        ahead = usable & (self.averages[1] < self.averages[0])
        self.lead.copy_(torch.where(ahead, self.lead + 1, 0))
        self.distilling.copy_(torch.maximum(self.distilling, (self.lead >= self.patience).float()))
        return self.distilling.clone()
