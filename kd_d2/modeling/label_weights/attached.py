"""What belongs to an image as a whole and yet travels with its instances."""

import torch
from torch import Tensor


class Attached:
    """A tensor as a field of ``Instances``, whose length has nothing to do with their number.

    ``Instances`` wants fields as long as itself, moves them between devices and takes subsets; of
    this one all subsets hold the whole tensor.

    Args:
        tensor: (k, ...).
        length: number of the instances.
    """

    def __init__(self, tensor: Tensor, length: int):
        self.tensor = tensor
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item) -> "Attached":
        return Attached(self.tensor, len(torch.arange(self.length)[_on_cpu(item)].view(-1)))

    def to(self, *args, **kwargs) -> "Attached":
        return Attached(self.tensor.to(*args, **kwargs), self.length)


def _on_cpu(item):
    return item.cpu() if isinstance(item, Tensor) else item
