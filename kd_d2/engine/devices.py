"""The --device option of tools that do not train."""

import torch

__all__ = ["check_device"]


def check_device(name: str) -> None:
    """
    Raises:
        ValueError: ``name`` is no CPU or GPU that torch finds here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name}: it must be cpu or cuda.")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ValueError(
            f"--device is {name}, and torch finds {found or 'no'} GPU{'s' * (found > 1)}: use "
            f"{'cuda:0' if found else 'cpu'}."
        )
