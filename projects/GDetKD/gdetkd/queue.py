"""Vectors of earlier iterations, as more negatives for CKD."""

import logging

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class VectorQueue(nn.Module):
    """The last vectors of the teacher, of all processes; a ring buffer.

    It is part of the checkpoint, so that a resumed run goes on as if it had not been stopped. A
    run that only starts from such weights begins with an empty queue. Every process has the same.

    Attributes:
        vectors: (size, D), float32.
        filled: how many of them hold a vector.
        next: where the next is written.
    """

    vectors: Tensor
    filled: Tensor
    next: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    def start_run(self) -> None:
        """Forgets the vectors of an earlier run."""
        if self.filled:
            logger.info("The queue of CKD's negatives starts empty (%d were there).", self.filled)
        self.filled.zero_()
        self.next.zero_()

    def content(self) -> Tensor:
        """(filled, D); slots that hold nothing are not in it."""
        return self.vectors[: int(self.filled)]

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Writes (M, D) over the oldest; of more than ``size`` the last are kept."""
        size = len(self.vectors)
        vectors = vectors[-size:] if size else vectors[:0]
        index = (torch.arange(len(vectors), device=vectors.device) + self.next) % max(size, 1)
        self.vectors[index] = vectors.to(self.vectors)
        self.next.copy_((self.next + len(vectors)) % max(size, 1))
        self.filled.copy_((self.filled + len(vectors)).clamp(max=size))
