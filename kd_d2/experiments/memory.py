"""How much memory a run has needed."""

import re
import resource
import sys
from pathlib import Path

__all__ = ["logged_gpu_peak", "resident_peak"]


def resident_peak(process: int | None = None) -> float | None:
    """Largest resident set of a process so far, in MiB.

    Args:
        process: its id; None: this one.

    Returns:
        None if that cannot be told: of another process where there is no /proc, or of one that has
        ended.
    """
    status = Path(f"/proc/{process or 'self'}/status")
    try:
        # Unlike ru_maxrss, this one does not remember the process that started us.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) / 1024
    if process is not None:
        return None
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def logged_gpu_peak(log: Path) -> float | None:
    """The largest ``max_mem`` that Detectron2 has logged, in MiB; None without a GPU."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return max(map(float, re.findall(r"max_mem: (\d+)M", text)), default=None)
