"""Rows of all processes, of which each may have another number."""

import torch
from detectron2.utils import comm
from torch import Tensor
from torch import distributed as dist


@torch.no_grad()
def gather_rows(x: Tensor) -> list[Tensor]:
    """What each process has, in the order of their ranks; here with no gradient.

    All must call it, those without rows, too. Counts are gathered first, then rows that are padded
    to the largest of them.

    Args:
        x: (R, D) of this process.

    Returns:
        (R_i, D) of each process; ``[x]`` where there is only one.

    >>> gather_rows(torch.ones(2, 1))
    [tensor([[1.],
            [1.]])]
    """
    size = comm.get_world_size()
    if size == 1:
        return [x.detach()]
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.zeros_like(count) for _ in range(size)]
    dist.all_gather(counts, count)
    counts = torch.cat(counts).tolist()
    padded = x.new_zeros(max(counts), x.shape[1])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in range(size)]
    if max(counts):
        dist.all_gather(gathered, padded)
    return [rows[:n] for rows, n in zip(gathered, counts, strict=True)]
