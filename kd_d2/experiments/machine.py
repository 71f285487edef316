"""What a reader must know of the machine to compare numbers."""

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

import torch


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: str = "cpu") -> dict[str, str | int]:
    """Date, device, processor, cores and versions."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def machine_sentence(machine: dict[str, str | int]) -> str:
    """
    >>> machine_sentence({"date": "2030-01-02", "device": "cpu", "cpu": "Z80", "cores": 1,
    ...                   "torch": "3.0", "python": "3.12"})
    'Z80 with 1 core, torch 3.0, Python 3.12, 2030-01-02'
    """
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    gpu = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    return (
        f"{gpu}{machine['cpu']} with {cores}, torch {machine['torch']}, "
        f"Python {machine['python']}, {machine['date']}"
    )
