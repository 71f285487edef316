"""Numbers of an iteration for the log."""

from collections.abc import Mapping

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor


def log_scalars(prefix: str, values: Mapping[str, Tensor | float]) -> None:
    """Puts numbers into the open event storage, if there is one, as ``<prefix>/<name>``.

    All at once, so that the host waits for a GPU once.
    """
    if not has_event_storage():
        return
    device = next((v.device for v in values.values() if isinstance(v, Tensor)), None)
    numbers = [torch.as_tensor(v, dtype=torch.float32, device=device) for v in values.values()]
    found = zip(values, torch.stack(numbers).tolist(), strict=True)
    get_event_storage().put_scalars(**{f"{prefix}/{name}": number for name, number in found})
