"""A second set of running statistics for a head that reads two kinds of features."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SecondNormStatistics(nn.Module):
    """Running statistics for the batch norms of ``modules`` while :meth:`in_force`.

    A head shared by the student's and the teacher's features would otherwise mix the two in its
    running mean and variance, which is what the student uses at test time. Weights and biases of
    the norms stay shared. Group and layer norms keep no statistics and are not touched.
    """

    _NAMES = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(self, modules: Iterable[nn.Module]):
        super().__init__()
        norms = [m for module in modules for m in module.modules()]
        norms = [m for m in norms if isinstance(m, _BatchNorm) and m.track_running_stats]
        # A tuple, not a ModuleList: the norms belong to the student's state dict alone.
        self._norms = tuple(norms)
        for i, norm in enumerate(norms):
            for name in self._NAMES:
                self.register_buffer(f"{name}_{i}", getattr(norm, name).detach().clone())

    def __len__(self) -> int:
        return len(self._norms)

    def _swap(self) -> None:
        for i, norm in enumerate(self._norms):
            for name in self._NAMES:
                mine = f"{name}_{i}"
                self._buffers[mine], norm._buffers[name] = norm._buffers[name], self._buffers[mine]

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """The norms read and update these statistics, and the student's stay as they are."""
        self._swap()
        try:
            yield
        finally:
            self._swap()
